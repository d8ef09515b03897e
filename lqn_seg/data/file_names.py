"""Names of files that are made from other names: image ids, paths, values, titles.

Whatever the text holds, its name stays in the folder that it is put into, and two texts never share
one. A name that is safe everywhere is kept. Any other is cleaned and ends in a hash of the text.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_LONGEST = 120  # bytes; file systems take 255, and figures join several names
_HASH = 12  # hex digits
_SAFE = re.compile(rf"[A-Za-z0-9_@+=]([A-Za-z0-9_@+=.-]{{,{_LONGEST - 2}}}[A-Za-z0-9_@+=-])?")
# What names that end in a hash look like, and names of devices on Windows, with any suffix.
_TAKEN = re.compile(rf".*-[0-9a-f]{{{_HASH}}}|(?i:con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def file_name(text: object, whole: str = "") -> str:
    """A file's name, without suffix, for a text: another one for every other text.

    Args:
        text: anything, by its `str`. Two that differ in letter case alone have names that do too:
            where files of both lie in one folder, `file_names` keeps them apart everywhere.
        whole: what the name stands for, where the text alone does not tell: always hashed.

    >>> file_name("IMG.2024"), file_name("x-y")
    ('IMG.2024', 'x-y')
    >>> file_name("x y"), file_name("../x"), file_name("")
    ('x-y-887fcea6a803', 'x-d6b96a97d147', 'e3b0c44298fc')
    """
    text = str(text)
    if not whole and _SAFE.fullmatch(text) and not _TAKEN.fullmatch(text):
        return text
    digest = hashlib.sha256((whole or text).encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
    cleaned = re.sub(r"[^\w.@+=-]+", "-", unicodedata.normalize("NFC", text))
    short = cleaned.encode()[: _LONGEST - _HASH - 1].decode(errors="ignore").strip(".-")
    return f"{short}-{digest}" if short else digest


def file_names(texts: Iterable[object]) -> dict[str, str]:
    """`file_name` of each text by its `str`; those that differ in case alone get hashes too, for
    there are file systems that take "A" and "a" for the same name."""
    known = dict.fromkeys(map(str, texts))
    alike = Counter(file_name(text).casefold() for text in known)
    return {
        text: file_name(text, text if alike[file_name(text).casefold()] > 1 else "")
        for text in known
    }
