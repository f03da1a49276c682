"""From adapters to tables, a summary for the terminal, and a page in HTML.

`comparison` reads and measures, with `texts` for what needs the base model to run; `findings` is
what comes out; `summary` and `page` show it, with the figures of `charts`, of which `module_maps`
are some, drawn by `svg`. `figures` are for notebooks.
"""
