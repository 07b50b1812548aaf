"""What is handed from room to room: frozen dataclasses and versioned files, free of torch."""
