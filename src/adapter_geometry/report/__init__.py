"""From adapters to tables, a summary for the terminal, and a page in HTML.

`comparison` reads and measures, with `texts` for what needs the base model to run; `findings` is
what comes out; `summary` and `page`, which `figures` draws for, show it.
"""
