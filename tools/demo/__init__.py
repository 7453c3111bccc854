"""The demo model: its pictures, its questions, and how it is trained. See docs/demo.md."""
