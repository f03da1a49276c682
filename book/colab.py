"""Put a first cell into the executed notebooks that fetches the book where one is opened in Colab.

`python book/colab.py REPOSITORY`, for the branch `executed` alone (book/_ext/page_buttons.py):
Colab opens a notebook without the repository around it. Anywhere else the cell does nothing.
"""

import sys
from pathlib import Path

import nbformat

BRANCH = "executed"
CELL = """\
import sys

if "google.colab" in sys.modules:
    get_ipython().system("git clone --quiet --depth 1 --branch {branch} {repository} book")
    get_ipython().system(
        "pip install --quiet --requirement book/requirements.txt "
        "&& pip install --quiet --no-deps --editable book"
    )
    get_ipython().run_line_magic("cd", "book")
    sys.path.insert(0, "src")"""


def main(repository: str, folder: Path = Path(__file__).parent / "notebooks") -> None:
    """Put the cell into each notebook of a folder; repository: address that it is cloned from."""
    source = CELL.format(branch=BRANCH, repository=repository)
    for path in sorted(folder.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        metadata = {"jupyter": {"source_hidden": True}}
        cell = nbformat.v4.new_code_cell(source, metadata=metadata, id="colab")
        notebook.cells.insert(0, cell)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1])
