"""The manual: pages that are made from the code, and how ``mkdocs`` makes a site of all pages."""
