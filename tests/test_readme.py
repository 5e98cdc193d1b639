"""The Python code in the README runs unchanged, and the README is short."""

import documents


def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documents.train_shortly(monkeypatch, fits=1)
    names = documents.run(documents.README)
    assert names["result"].step == 1
    assert names["logits"].shape == (8, 10)
    kernel = names["variables"]["params"]["Backbone_0"]["Conv_0"]["kernel"]
    assert kernel.shape == (3, 3, 3, 3, 32)  # separate parameters for each of three paths
    trained = names["run"].variables["params"]["Backbone_0"]["Conv_0"]["kernel"]
    assert trained.shape == kernel.shape


def test_it_has_at_most_200_lines():
    assert len(documents.README.read_text().splitlines()) <= 200
