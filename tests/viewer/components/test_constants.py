"""Python and JavaScript have the same constants."""

from headatlas.viewer.components.constants import CONSTANTS, constants_script
from headatlas.viewer.components.script_files import FOLDER


def test_the_generated_file_is_up_to_date():
    assert (FOLDER / "constants.js").read_text("utf-8") == constants_script()


def test_every_constant_is_used():
    sources = [path.read_text("utf-8") for path in FOLDER.glob("*.js") if path.name != "constants.js"]
    assert [name for name in CONSTANTS if not any(name in source for source in sources)] == []
