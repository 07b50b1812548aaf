"""Tests of the room of networks that users bring."""
