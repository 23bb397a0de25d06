"""Every notebook runs from top to bottom without an error, and is committed without outputs."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks are read with nbformat")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def here(tmp_path, monkeypatch) -> str:
    """Name of a kernel that is the running interpreter; nothing is read from or left in the user's folders."""
    pytest.importorskip("ipykernel", reason="notebooks run in ipykernel")
    from ipykernel.kernelspec import write_kernel_spec

    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    write_kernel_spec(tmp_path / "JUPYTER_PATH" / "kernels" / "here")
    return "here"


def test_there_are_notebooks():
    assert NOTEBOOKS


@every_notebook
def test_runs(path, here, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="notebooks are run by nbclient")
    place = tmp_path / "place"
    place.mkdir()
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, kernel_name=here, timeout=300).execute(cwd=str(place))
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@every_notebook
def test_is_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert not cell.metadata, cell.id
        if cell.cell_type == "code":
            assert cell.outputs == [], cell.id
            assert cell.execution_count is None, cell.id
