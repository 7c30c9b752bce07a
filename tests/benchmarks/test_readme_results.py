"""The figures in the methods' READMEs and in docs/results.md are those of docs/figures."""

import pytest
from benchmarks.readme_results import ROOT, block, read_figures, readmes, rows_of_methods, table, with_block

HEADER = "row,source,seed,macro_f1,micro_f1,samples_f1,mAP,accuracy,learnable_parameters,seconds"
LINES = """,photos_per_second,peak_memory_mb
CPAD,paper,,27.39,40.98,41.12,,,,,,
Tip-Adapter,ours,0,40.0,50.0,45.0,30.0,,0,6.0,1000.0,500.0
Tip-Adapter-F,ours,0,41.0,51.0,46.0,31.0,,768000,30.0,1200.0,600.0
Tip-Adapter-F,ours,2,43.0,51.0,46.0,34.0,,768000,90.0,1400.0,580.0
"""


@pytest.fixture
def figures(tmp_path):
    (tmp_path / "methods-lite-proxy.csv").write_text(HEADER + LINES, encoding="utf-8")
    return read_figures(tmp_path)


def test_every_readme_shows_the_figures_that_are_there():
    figures = read_figures(ROOT / "docs" / "figures")
    assert "proxy" in figures
    wrong = [path.parent.name for path, text in readmes(figures).items() if path.read_text(encoding="utf-8") != text]
    assert wrong == [], "run: python -m benchmarks.readme_results"


def test_the_results_page_shows_every_table_under_its_command():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    figures = read_figures(ROOT / "docs" / "figures")
    wrong = [dataset for dataset, measured in figures.items() if table(dataset, measured) not in page]
    assert wrong == [], "run: python -m benchmarks.readme_results --tables"


def test_rows_find_their_methods():
    rows = rows_of_methods()
    assert rows["tip_adapter"] == ["Tip-Adapter", "Tip-Adapter-F"]
    assert rows["intclip"] == ["IntCLIP", "IntCLIP, free negative"]
    assert (rows["ensemble"], rows["intclip_words"]) == (["Best (ensemble)"], [])


def test_a_block_has_mean_deviation_seeds_and_the_command(figures):
    text = block(["Tip-Adapter", "Tip-Adapter-F"], figures)
    assert "| Tip-Adapter, proxy intents | 40.0 | 50.0 | 45.0 | 30.0 | 1 |" in text
    assert "| Tip-Adapter-F, proxy intents | 42.0 ± 1.4 | 51.0 ± 0.0 | 46.0 ± 0.0 | 32.5 ± 2.1 | 2 |" in text
    assert "Accuracy" not in text
    assert "--seeds 0,2 --row Tip-Adapter --row Tip-Adapter-F --set evaluate.bootstrap=0\n" in text
    assert "Not measured" in block(["CPAD"], figures)


def test_a_block_replaces_the_old_one_and_nothing_else(figures):
    old, new = block(["CPAD"], figures), block(["Tip-Adapter"], figures)
    assert with_block(f"# cpad\n\n## Results\n\n{old}\nPublished: none.\n", new) == (
        f"# cpad\n\n## Results\n\n{new}\nPublished: none.\n"
    )
    assert with_block("# cpad\n", new) == f"# cpad\n\n## Results\n\n{new}"


def test_the_table_has_published_figures_and_costs(figures):
    text = table("proxy", figures["proxy"])
    costs = "768,000 | 1.0 | 1,300 | 600 |"
    assert f"| Tip-Adapter-F | 42.0 ± 1.4 | 51.0 ± 0.0 | 46.0 ± 0.0 | 32.5 ± 2.1 | 2 | – | {costs}" in text
    assert "CPAD" not in text  # it was not run
    figures["proxy"]["CPAD"].runs.extend(figures["proxy"]["Tip-Adapter"].runs)
    costs = "0 | 0.1 | 1,000 | 500 |"
    assert f"| CPAD | 40.0 | 50.0 | 45.0 | 30.0 | 1 | 27.39 / 40.98 / 41.12 / – | {costs}" in table(
        "proxy", figures["proxy"]
    )
