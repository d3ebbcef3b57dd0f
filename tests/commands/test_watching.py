"""Which changes of files begin a server again."""

from __future__ import annotations

import trio

from server.commands.watching import Code, changed_between, versions_in


def test_code_is_what_python_would_import_and_nothing_else(tmp_path):
    for name in (
        "shop/tools.py",
        "receiver.py",
        "agents/agents.py",
        "agents/desk.toml",
        "tests/test_calls.py",
        "test_agents.py",
        "shop/tools_test.py",
        "conftest.py",
        ".git/hooks/x.py",
        "__pycache__/x.py",
        "node_modules/x/x.py",
        "offhook.db",
        ".env",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (tmp_path / "env" / "lib").mkdir(parents=True)
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    (tmp_path / "env" / "lib" / "x.py").write_text("")

    found = versions_in(
        tmp_path, (tmp_path / ".env", tmp_path / "gone.toml"), tmp_path / "agents/agents.py"
    )

    assert sorted(found) == [
        str(tmp_path / ".env"),
        str(tmp_path / "receiver.py"),
        str(tmp_path / "shop/tools.py"),
    ]


def test_files_of_agents_count_where_they_are_wanted(tmp_path):
    folder = tmp_path / "agents"
    folder.mkdir()
    for name in ("agents.py", "desk.toml", "desk.md", "hello.wav", "offhook.db"):
        (folder / name).write_text("")
    (tmp_path / "tools.py").write_text("")

    found = [versions_in(tmp_path, agents=path) for path in (folder, folder / "desk.toml")]

    names = ["agents/agents.py", "agents/desk.md", "agents/desk.toml", "agents/hello.wav"]
    assert [sorted(each) for each in found] == [
        [str(tmp_path / name) for name in (*names, "tools.py")]
    ] * 2


def test_agents_that_cannot_be_looked_at_are_no_files(tmp_path):
    (tmp_path / "tools.py").write_text("")

    found = versions_in(tmp_path, agents=tmp_path / ("n" * 300))

    assert list(found) == [str(tmp_path / "tools.py")]


def test_links_that_lead_round_in_a_circle_are_not_followed(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "again").symlink_to(tmp_path)
    (tmp_path / "shop" / "tools.py").write_text("")

    assert list(versions_in(tmp_path)) == [str(tmp_path / "shop/tools.py")]


def test_what_is_new_gone_or_another_is_changed():
    assert changed_between({"a": (1, 1), "b": (1, 1)}, {"b": (2, 1), "c": (1, 1)}) == [
        "a",
        "b",
        "c",
    ]


async def test_files_that_change_together_are_one_change(tmp_path, autojump_clock):
    (tmp_path / "a.py").write_text("1")
    code = Code(tmp_path, (), None)
    await code.look()
    changes: list[list[str]] = []

    async def wait() -> None:
        changes.append(await code.wait_changed())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(5.0)
        (tmp_path / "a.py").write_text("22")
        (tmp_path / "b.py").write_text("2")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        (tmp_path / "b.py").unlink()

    names = [[name.rpartition("/")[2] for name in change] for change in changes]
    assert names == [["a.py", "b.py"], ["b.py"]]
