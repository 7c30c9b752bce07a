"""Keywords in XMP sidecars: added, removed, and everything else kept."""

from types import SimpleNamespace

import pytest

from intclip.errors import StorageError
from intclip.inference.sidecars import merge_keywords, write_sidecar

etree = pytest.importorskip("lxml.etree")

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
SUBJECT = "{http://purl.org/dc/elements/1.1/}subject"
TREE = "{http://ns.adobe.com/lightroom/1.0/}hierarchicalSubject"
DIGIKAM = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<!-- written by hand -->
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/" crs:Exposure2012="+0.35"/>
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">
   <dc:title><rdf:Alt><rdf:li xml:lang="x-default">Omas Garten</rdf:li></rdf:Alt></dc:title>
   <dc:subject><rdf:Seq><rdf:li>fear</rdf:li><rdf:li>Oma &amp; Opa</rdf:li></rdf:Seq></dc:subject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>""".encode()


def words(content: bytes, kind: str) -> list[str]:
    return [item.text for found in etree.fromstring(content).iter(kind) for item in found.iter(f"{RDF}li")]


def test_a_new_sidecar():
    content = merge_keywords(None, "x", ["joy", "fear"], ["good|joy", "fear"])
    assert words(content, SUBJECT) == ["joy", "fear"]
    assert words(content, TREE) == ["good|joy"]
    assert merge_keywords(content, "x", ["joy", "fear"], ["good|joy", "fear"]) is None, "nothing to change"
    assert merge_keywords(None, "x", [], []) is None, "nothing to write"


def test_whatever_a_sidecar_holds_stays():
    content = merge_keywords(DIGIKAM, "x", ["joy", "fear"], ["good|joy"])
    assert words(content, SUBJECT) == ["fear", "Oma & Opa", "joy"]
    assert words(content, TREE) == ["good|joy"]
    for part in (
        b'xmp:Rating="4"',
        b'crs:Exposure2012="+0.35"',
        b"Omas Garten",
        b"written by hand",
        b'<?xpacket end="w"?>',
    ):
        assert part in content
    assert b"<?xml" not in content


def test_our_keywords_are_taken_back_and_no_others():
    first = merge_keywords(DIGIKAM, "x", ["joy", "fear"], ["good|joy"])
    second = merge_keywords(first, "x", ["awe"], ["good|awe"])
    assert words(second, SUBJECT) == ["fear", "Oma & Opa", "awe"], "fear was the user's before it was ours"
    assert words(second, TREE) == ["good|awe"]
    third = merge_keywords(second, "x", [], [])
    assert words(third, SUBJECT) == ["fear", "Oma & Opa"]
    assert not words(third, TREE)
    assert b"intclip" not in third


@pytest.mark.parametrize("form", ['dc:subject="sea"/>', "><dc:subject>sea</dc:subject></rdf:Description>"])
def test_a_single_keyword_becomes_the_first_of_a_list(form):
    head = '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    names = 'xmlns:dc="http://purl.org/dc/elements/1.1/" '
    content = merge_keywords(f"{head}{names}{form}</rdf:RDF>".encode(), "x", ["joy"], [])
    assert words(content, SUBJECT) == ["sea", "joy"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not XML",
        DIGIKAM[:300],
        b"<html><body/></html>",
        b'<!DOCTYPE x [<!ENTITY a "b">]>' + DIGIKAM.partition(b"-->\n")[2].replace(b"Omas", b"&a;"),
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd">' + DIGIKAM.partition(b"-->\n")[2],
        b'<?xml version="1.0" encoding="none-such"?><x/>',
    ],
)
def test_what_is_no_sidecar_is_refused_by_name(content):
    with pytest.raises(StorageError, match=r"photo\.xmp"):
        merge_keywords(content, "photo.xmp", ["joy"], [])


def prediction(*labels: str, **parents: tuple[str, ...]) -> SimpleNamespace:
    return SimpleNamespace(labels=list(labels), taxonomy=SimpleNamespace(parents=parents))


def test_sidecars_stand_beside_their_photos(tmp_path):
    photo = tmp_path / "a b.jpg"
    photo.write_bytes(b"x")
    path = write_sidecar(photo, prediction("joy", "bad|name\x01", joy=("delight", "good")))
    assert path == tmp_path / "a b.jpg.xmp"
    content = path.read_bytes()
    assert words(content, SUBJECT) == ["joy", "bad|name "]
    assert words(content, TREE) == ["good|delight|joy"]
    before = path.stat().st_mtime_ns
    assert write_sidecar(photo, prediction("joy", "bad|name\x01", joy=("delight", "good"))) is None
    assert path.stat().st_mtime_ns == before
    assert photo.read_bytes() == b"x"
    with pytest.raises(StorageError, match=r"none\.jpg"):
        write_sidecar(tmp_path / "none.jpg", prediction("joy"))


def test_a_linked_sidecar_is_written_where_it_lies(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "real.xmp").write_bytes(DIGIKAM)
    (tmp_path / "real.xmp").chmod(0o600)
    (tmp_path / "a.jpg.xmp").symlink_to("real.xmp")
    write_sidecar(tmp_path / "a.jpg", prediction("joy"))
    assert (tmp_path / "a.jpg.xmp").is_symlink()
    assert "joy" in words((tmp_path / "real.xmp").read_bytes(), SUBJECT)
    assert (tmp_path / "real.xmp").stat().st_mode & 0o777 == 0o600


def test_a_sidecar_that_cannot_be_read_is_left_as_it_is(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "a.jpg.xmp").write_bytes(b"my notes")
    with pytest.raises(StorageError, match=r"a\.jpg\.xmp"):
        write_sidecar(tmp_path / "a.jpg", prediction("joy"))
    assert (tmp_path / "a.jpg.xmp").read_bytes() == b"my notes"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.jpg.xmp"]
