"""STAR files as they are written: every table of a file, in order, with each value as its text.

The rules are those by which RELION reads such files, tried on RELION 3.1.3: words are parted by
blanks; a word that begins with a quote ends at the next such quote that a blank follows, so quotes
and # inside words are kept; a word that begins with # begins a comment. Two things are read more
kindly: blank lines and comments between rows, at which RELION stops, and lone carriage returns.
"""

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from instamap.errors import DataError

_BLOCK = 1 << 21  # bytes that are parsed at once
_ROWS_AT_ONCE = 1 << 15  # rows that are written at once
_MAX_WIDENING = 8  # how much larger than its texts a column of one width may be
# Text packs to a fifth or so; what packs a hundred times as well is not written by a program that
# makes STAR files.
_MAX_UNPACKING = 100
_MIN_UNPACKED = 1 << 26  # bytes below which it does not matter how well a file packs
_MAX_NAMED = 10  # rows that an error names

_QUOTES = (b"'", b'"')
_SPECIAL = re.compile(rb"(?:^|\s)[#'\"]")
_QUOTED = re.compile(rb"(?:^|\s)['\"]")
_COMMENT = re.compile(rb"(?:^|\s)#")
_WORD = re.compile(rb"\s*(\S+)")
_CLOSING = {quote: re.compile(quote + rb"(?=\s|$)") for quote in _QUOTES}
_END_OF_ROWS = re.compile(rb"^[ \t\v\f]*(?:data_|loop_)", re.MULTILINE)

Numbers = npt.NDArray[np.float64]
RowNumbers = npt.NDArray[np.int64]
Texts = npt.NDArray[np.bytes_] | npt.NDArray[np.object_]


class Column:
    """Values of one column as they are written, quotes included, in pieces of some rows each."""

    def __init__(self, pieces: Iterable[Texts] = ()) -> None:
        self._pieces = list(pieces)

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Column":
        """A column of new values, which are quoted where they must be. Raises DataError."""
        column = cls()
        column.append([quoted(text) for text in texts])
        return column

    def append(self, words: list[bytes]) -> None:
        """Add values as they are written."""
        if words:
            self._pieces.append(_packed(words))

    def __len__(self) -> int:
        return sum(len(piece) for piece in self._pieces)

    def written(self) -> list[bytes]:
        """Every value as it is written."""
        words: list[bytes] = []
        for piece in self._pieces:
            words.extend(piece.tolist())
        return words

    def texts(self) -> list[str]:
        """Every value without its quotes; bytes that are not UTF-8 survive as file names do."""
        texts: list[str] = []
        for piece in self._pieces:
            texts.extend(unquoted(word) for word in piece.tolist())
        return texts

    def numbers(self) -> Numbers:
        """Every value as a number; not a number where it is none."""
        if not self._pieces:
            return np.empty(0)
        return np.concatenate([_numbers(piece) for piece in self._pieces])

    def take(self, rows: RowNumbers) -> "Column":
        """The values of some rows, in the order given."""
        words = self.written()
        chosen = Column()
        chosen.append([words[row] for row in rows.tolist()])
        return chosen


@dataclass(frozen=True)
class Table:
    """One table of a STAR file.

    name: what follows data_. columns: by label without its underscore. loop: False where it is
    written as labels and values. comments: the lines of comment before its rows. line: of its
    data_, from 1.
    """

    name: str
    columns: Mapping[str, Column]
    loop: bool = True
    comments: tuple[bytes, ...] = ()
    line: int = 0

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def with_columns(self, columns: Mapping[str, Column]) -> "Table":
        """The table with some columns replaced in their place, or added at the end."""
        return replace(self, columns={**self.columns, **columns})

    def without(self, labels: Iterable[str]) -> "Table":
        """The table without some columns."""
        gone = set(labels)
        kept = {label: column for label, column in self.columns.items() if label not in gone}
        return replace(self, columns=kept)

    def take(self, rows: RowNumbers) -> "Table":
        """The table of some rows, in the order given."""
        chosen = {label: column.take(rows) for label, column in self.columns.items()}
        return replace(self, columns=chosen)


def read(path: Path) -> list[Table]:
    """Every table of `path` (also gzipped: .star.gz), in the file's order. Raises DataError."""
    parser = _Parser(path)
    try:
        for block in _blocks(path):
            parser.feed(block)
    except FileNotFoundError as error:
        raise DataError(f"'{path}' does not exist; give the path of a STAR file") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:  # whose words are the library's own
        raise DataError(
            f"'{path}' can't be read: its compressed data are {_damage(error)}; copy it again, or"
            " give the STAR file unpacked"
        ) from error
    except IsADirectoryError as error:
        raise DataError(f"'{path}' is a folder; {_star_within(path)}") from error
    except OSError as error:
        raise DataError(
            f"'{path}' can't be read ({error.strerror or error}); give a STAR file that can be"
        ) from error
    return parser.finish()


def _star_within(folder: Path) -> str:
    """Which file to give instead of a folder."""
    names = sorted(file.name for file in folder.glob("*.star"))
    if not names:
        return "give a STAR file"
    return f"give a STAR file, such as '{folder / names[0]}'"


def _damage(error: Exception) -> str:
    """What befell the bytes of a gzipped file."""
    return "cut off" if isinstance(error, EOFError) else "damaged"


def write(tables: Iterable[Table], path: Path) -> None:
    """Write tables in order, every value as it was written. Raises OSError."""
    with path.open("wb") as file:
        for table in tables:
            _write_table(table, file)


def words(line: bytes) -> list[bytes]:
    """The values of a line as they are written, quotes included, without its comment."""
    if _QUOTED.search(line):
        return _words_with_quotes(line)
    comment = _COMMENT.search(line)
    if comment:
        line = line[: comment.start()]
    return line.split()


def quoted(text: str) -> bytes:
    """A value as it must be written, in quotes where it would not be read as one word. Raises
    DataError for one that can't be written.
    """
    word = text.encode("utf-8", "surrogateescape")
    if words(word) == [word]:
        return word
    for quote in (b'"', b"'"):
        candidate = quote + word + quote
        if b"\n" not in word and b"\r" not in word and words(candidate) == [candidate]:
            return candidate
    raise DataError(
        f"{text!r} can't be written to a STAR file; use a name without line breaks and quotes"
    )


def unquoted(word: bytes) -> str:
    """A value without the quotes around it; bytes that are not UTF-8 survive as file names do."""
    quote = word[:1]
    if len(word) > 1 and quote in _QUOTES and word.endswith(quote):
        word = word[1:-1]
    return word.decode("utf-8", "surrogateescape")


def _words_with_quotes(line: bytes) -> list[bytes]:
    found = []
    position = 0
    unfinished = set()  # quotes that nothing closes in the rest of this line
    while word := _WORD.match(line, position):
        quote = line[word.start(1) : word.start(1) + 1]
        position = word.end()
        if quote == b"#":
            break
        if quote in _QUOTES and quote not in unfinished:
            closing = _CLOSING[quote].search(line, word.start(1) + 1)
            if closing is None:
                unfinished.add(quote)
            else:
                position = closing.end()
        found.append(line[word.start(1) : position])
    return found


def _whole_rows(block: bytes, columns: int, count: int) -> list[bytes] | None:
    """The values of `count` rows one after the other; None unless each row has one per column.

    The block holds neither comments nor quotes. No text holds a NUL, so that it can stand for the
    ends of lines while all of them are split at once.
    """
    found = block.replace(b"\n", b" \0 ").split()
    ends = found[columns :: columns + 1]
    if len(found) != count * (columns + 1) or ends.count(b"\0") != count:
        return None
    del found[columns :: columns + 1]
    return found


def _has_special(block: bytes) -> bool:
    """Whether any word may begin with # or a quote."""
    if not any(mark in block for mark in (b"#", *_QUOTES)):
        return False  # sooner than by the expression
    return _SPECIAL.search(block) is not None


def _packed(words: list[bytes]) -> Texts:
    """An array of one width, unless one long value would make it far larger than its texts."""
    lengths = [len(word) for word in words]
    width = max(lengths)
    if width * len(words) <= _MAX_WIDENING * (sum(lengths) + len(words)):
        return np.array(words, f"S{max(width, 1)}")
    return np.array([*words, None], object)[:-1]


def _numbers(piece: Texts) -> Numbers:
    """Each value of a piece as float(text) has it, or not a number."""
    if piece.dtype.kind == "O":
        return np.array([_number(word) for word in piece.tolist()])
    try:
        values = piece.astype(np.float64)
    except ValueError:
        return np.array([_number(word) for word in piece.tolist()])
    if b"_" in piece.tobytes():
        return np.array([_number(word) for word in piece.tolist()])
    return values


def _number(word: bytes) -> float:
    """A value, perhaps in quotes, as a number. Python's own 1_000 is none to other programs."""
    text = unquoted(word)
    try:
        return np.nan if "_" in text else float(text)
    except ValueError:
        return np.nan


def _blocks(path: Path) -> Iterator[bytes]:
    """The file's bytes, unpacked, in blocks of whole lines that end in a line feed. Raises
    DataError for what is no text, and for what is no file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"'{path}' is not a regular file; give a STAR file")
    packed = path.suffix == ".gz"
    limit = max(_MIN_UNPACKED, _MAX_UNPACKING * path.stat().st_size)
    offset = 0
    pieces: list[bytes] = []
    with gzip.open(path) if packed else path.open("rb") as file:
        while block := file.read(_BLOCK):
            _check_text(path, block, offset)
            offset += len(block)
            if packed and offset > limit:
                raise DataError(
                    f"'{path}' unpacks to more than {_MAX_UNPACKING} times its size; unpack it and"
                    " look at it"
                )
            if block.endswith(b"\r"):  # whose line feed may be the next block's first byte
                block += file.read(1)
            block = _with_line_feeds(block)
            whole, feed, rest = block.rpartition(b"\n")
            if not feed:
                pieces.append(rest)
                continue
            yield b"".join([*pieces, whole, feed])
            pieces = [rest]
    last = b"".join(pieces)
    if last:
        yield last + b"\n"


def _with_line_feeds(block: bytes) -> bytes:
    if b"\r" not in block:
        return block
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _check_text(path: Path, block: bytes, offset: int) -> None:
    place = block.find(0)
    if place >= 0:
        raise _not_text(path, offset + place)


def _not_text(path: Path, place: int) -> DataError:
    return DataError(
        f"'{path}' is not a STAR file (byte {place} is no text); give the metadata, not the images"
    )


def _write_table(table: Table, file: BinaryIO) -> None:
    for comment in table.comments:
        file.write(comment + b"\n")
    file.write(f"\ndata_{table.name}\n\n".encode("utf-8", "surrogateescape"))
    labels = [label.encode("utf-8", "surrogateescape") for label in table.columns]
    columns = [column.written() for column in table.columns.values()]
    if table.loop and labels:
        file.write(b"loop_\n")
        for number, label in enumerate(labels, 1):
            file.write(b"_%s #%d\n" % (label, number))
        for start in range(0, len(table), _ROWS_AT_ONCE):
            rows = zip(*[column[start : start + _ROWS_AT_ONCE] for column in columns], strict=True)
            file.write(b"".join(b"\t".join(row) + b"\n" for row in rows))
    else:
        for label, column in zip(labels, columns, strict=True):
            file.write(b"_%s\t%s\n" % (label, column[0]))
    file.write(b"\n")


@dataclass
class _Draft:
    """A table that is being read. labels: in order. short: of rows with a wrong number of values
    the number of the row and of its line, and how many values it has.
    """

    name: str
    line: int
    comments: list[bytes]
    loop: bool = False
    labels: list[str] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    in_rows: bool = False
    rows: int = 0
    wrong: list[tuple[int, int, int]] = field(default_factory=list)

    def add_label(self, label: str) -> Column:
        column = Column()
        self.labels.append(label)
        self.columns.append(column)
        return column


class _Parser:
    """Reads blocks of whole lines, one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tables: list[_Draft] = []
        self._line = 0  # lines that were read
        self._comments: list[bytes] = []  # that were read since the last row
        self._odd_byte: int | None = None

    def feed(self, block: bytes) -> None:
        """Read the lines of a block."""
        if not self._line:
            block = block.removeprefix(b"\xef\xbb\xbf")
            control = re.search(rb"[\x01-\x08\x0e-\x1f\x7f-\xff]", block)
            self._odd_byte = control.start() if control else None
        position = 0
        while position < len(block):
            if self._tables and self._tables[-1].in_rows:
                end = self._end_of_rows(block, position)
                if end > position:
                    self._read_rows(block[position:end])
                    position = end
                    continue
            end = block.index(b"\n", position) + 1
            self._line += 1
            if not self._read_line(block[position : end - 1]):
                self._line -= 1  # it is the first row
                continue
            position = end

    def finish(self) -> list[Table]:
        """The tables, once they are checked. Raises DataError."""
        if not self._tables:
            if self._odd_byte is not None:
                raise _not_text(self.path, self._odd_byte)
            raise DataError(f"'{self.path}' holds no data_ table; give a STAR file of particles")
        if not self._tables[-1].labels:
            raise DataError(
                f"'{self.path}' ends in a data_ block without a table; copy it again or mend it"
            )
        return [self._checked(table) for table in self._tables]

    def _checked(self, draft: _Draft) -> Table:
        if draft.wrong:
            raise self._wrong_rows(draft)
        columns = {}
        for label, column in zip(draft.labels, draft.columns, strict=True):
            if label in columns:
                raise DataError(
                    f"table data_{draft.name} of '{self.path}' has column {label} twice; remove"
                    " one of them"
                )
            columns[label] = column
        return Table(draft.name, columns, draft.loop, tuple(draft.comments), draft.line)

    def _wrong_rows(self, draft: _Draft) -> DataError:
        row, line, count = draft.wrong[0]
        named = ", ".join(str(row) for row, _, _ in draft.wrong[:_MAX_NAMED])
        more = ", ..." if len(draft.wrong) > _MAX_NAMED else ""
        others = f" ({len(draft.wrong)} of {draft.rows} rows are wrong: {named}{more})"
        return DataError(
            f"row {row} (line {line}) of table data_{draft.name} of '{self.path}' has {count}"
            f" values, but the table has {len(draft.labels)} columns; mend or remove that row"
            + (others if len(draft.wrong) > 1 else "")
        )

    def _read_line(self, line: bytes) -> bool:
        """Read a line that is not a row; False for the first row of a table."""
        stripped = line.strip()
        table = self._tables[-1] if self._tables else None
        in_labels = table is not None and table.loop and not table.in_rows
        if not stripped:
            return True
        if stripped.startswith((b"#", b";")):
            kept = self._comments if table is None or not in_labels else table.comments
            kept.append(stripped)
            return True
        found = words(stripped)
        if found[0].startswith(b"data_") and len(found) == 1:
            self._begin(found[0])
        elif table is None:
            return True  # what is written before the first table, RELION leaves out too
        elif found[0].startswith(b"_") and not table.in_rows:
            self._read_label(table, found)
        elif found == [b"loop_"]:
            self._begin_loop(table)
        elif table.labels and table.loop:
            table.in_rows = True
            return False
        else:
            raise self._unreadable("belongs to no table")
        return True

    def _begin(self, word: bytes) -> None:
        name = word[len(b"data_") :].decode("utf-8", "surrogateescape")
        self._tables.append(_Draft(name, self._line, self._comments))
        self._comments = []

    def _begin_loop(self, table: _Draft) -> None:
        if table.labels or table.loop:
            raise self._unreadable(
                f"begins a second table in data_{table.name}, which needs a data_ line of its own"
            )
        table.comments.extend(self._comments)
        self._comments = []
        table.loop = True

    def _read_label(self, table: _Draft, found: list[bytes]) -> None:
        label = found[0][1:].decode("utf-8", "surrogateescape")
        column = table.add_label(label)
        if table.loop:
            return
        if len(found) != 2:
            raise self._unreadable(f"has {len(found) - 1} values for {label}, which needs one")
        column.append(found[1:])

    def _unreadable(self, reason: str) -> DataError:
        return DataError(
            f"'{self.path}' can't be read as a STAR file (line {self._line} {reason}); copy it"
            " again or mend it"
        )

    def _end_of_rows(self, block: bytes, position: int) -> int:
        """Where the rows of the last table end: at a line that begins another, or with the block.

        A row whose first value begins with data_ is a row, if it has more values than that one.
        """
        if b"data_" not in block and b"loop_" not in block:
            return len(block)  # sooner than by the expression
        for match in _END_OF_ROWS.finditer(block, position):
            end = block.index(b"\n", match.start())
            found = words(block[match.start() : end])
            if len(found) == 1 and (found[0].startswith(b"data_") or found[0] == b"loop_"):
                return match.start()
        return len(block)

    def _read_rows(self, block: bytes) -> None:
        """Rows of the last table, with comments and blank lines between them."""
        table = self._tables[-1]
        count = block.count(b"\n")
        plain = not _has_special(block)
        flat = _whole_rows(block, len(table.labels), count) if plain else None
        if flat is not None:
            self._comments = []
        else:
            lines = block.split(b"\n")[:-1]
            rows = [words(line) for line in lines]
            self._keep_comments(lines, rows)
            self._note_wrong(table, rows)
            whole = [row for row in rows if len(row) == len(table.labels)]
            flat = list(chain.from_iterable(whole))
        for place, column in enumerate(table.columns):
            column.append(flat[place :: len(table.labels)])
        table.rows += len(flat) // len(table.labels)
        self._line += count

    def _keep_comments(self, lines: list[bytes], rows: list[list[bytes]]) -> None:
        """Lines of comment after the last row belong to the table that follows."""
        for line, row in zip(lines, rows, strict=True):
            if row:
                self._comments = []
            elif line and not line.isspace():
                self._comments.append(line.strip())

    def _note_wrong(self, table: _Draft, rows: list[list[bytes]]) -> None:
        number = table.rows
        line = self._line
        columns = len(table.labels)
        for row in rows:
            line += 1
            number += bool(row)
            if row and len(row) != columns:
                table.wrong.append((number, line, len(row)))
        table.rows += sum(bool(row) and len(row) != columns for row in rows)
