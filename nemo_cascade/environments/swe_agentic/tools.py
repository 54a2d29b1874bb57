"""What an agent may call: a shell and an editor over the files of a repository, by the names that OpenHands gives them.

Descriptions are ours. Paths are those that the shell shows, below /box/work.
"""

ROOT = "/box/work"


def _tool(name: str, description: str, required: list[str], **parameters: tuple[str, str]) -> dict:
    properties = {key: {"type": kind, "description": words} for key, (kind, words) in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "name": name, "description": description, "parameters": schema}


DEFINITIONS = [
    _tool(
        "execute_bash",
        f"Runs a command in bash, at first in {ROOT}, later in the folder where the last command ended. Files stay; variables and "
        "processes in the background do not. There is no network. Gives the exit status and the output.",
        ["command"],
        command=("string", "the command, of one or more lines"),
    ),
    _tool(
        "str_replace_editor",
        "Shows and edits text files. view: a file with line numbers, or the files of a folder. create: a new file, or all of an "
        "old one. str_replace: old_str, which must stand in the file exactly once, becomes new_str. insert: new_str after line "
        "insert_line. undo_edit: the file as it was before the last edit.",
        ["command", "path"],
        command=("string", "view, create, str_replace, insert or undo_edit"),
        path=("string", f"the file or folder, such as {ROOT}/package/module.py"),
        file_text=("string", "create: the whole file"),
        old_str=("string", "str_replace: what is replaced"),
        new_str=("string", "str_replace and insert: what comes instead, or in addition"),
        insert_line=("integer", "insert: the line after which it comes, 0 for the beginning"),
        view_range=("array", "view: first and last line, such as [1, 40]"),
    ),
    _tool("finish", "Ends the work.", [], message=("string", "what was done")),
]
NAMES = tuple(tool["name"] for tool in DEFINITIONS)
