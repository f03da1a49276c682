"""From adapters to tables, a summary for the terminal, and a page in HTML."""
