"""LLaVA's sets in their real schemas, and what is refused of them."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from shards.errors import BadInput
from shards.readers import ReaderOptions, find_reader
from shards.readers.llava_images import alternatives
from shards.sample import Sample

Fields = dict[str, Any]
BUS = "coco/train2017/000000033471.jpg"


def turns(*texts: str) -> list[Fields]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


ASKED = turns("<image>\nWhat?", "A bus.")


def row(image: Any = BUS, conversations: Any = ASKED, **fields: Any) -> Fields:
    """A row; a field that is ... is left out."""
    given = {"id": "000000033471", "image": image, "conversations": conversations}
    return {name: value for name, value in (given | fields).items() if value is not ...}


# as in llava_v1_5_mix665k.json, llava_instruct_150k.json and blip_laion_cc_sbu_558k.json
MIX = [
    row(
        conversations=turns(
            "<image>\nWhat are the colors of the bus in the image?",
            "The bus in the image is white and red.",
            "What feature can be seen on the back of the bus?\nAnswer in one line.",
            "An advertisement.",
        )
    ),
    row("gqa/images/2354786.jpg", turns("Is it overcast?\nAnswer in a word.\n<image>", "No"), id=2354786),
    row("ocr_vqa/images/140031996X.jpg", turns("<image>\nWho wrote this?", "H. Jackson Brown"), id="140031996X"),
    row("textvqa/train_images/011e7e629fb9ae7b.jpg", turns("Look at <image>, then\n  read it", "Ok"), id=...),
    row("vg/VG_100K_2/1592.jpg", turns("Hello", "Hello.", "<image>\r\nWhere?", "[0.1, 0.2, 0.3, 0.4]"), id="1592"),
    {"id": "wgByO4Y_0", "model": "", "conversations": turns("Who?\n\n- a\n- b", "Ann")},
    row(
        "00453/004539375.jpg",
        turns("Render a summary of the photo.\n<image>", "select luxury furniture"),
        id="004539375",
    ),
    row("00223/002239345.jpg", turns("<image>", "a grey watch"), id="002239345"),
    # an answer before the first question is dropped
    {"id": "VTMLLw3_0", "conversations": [{"from": "gpt", "value": "dropped"}, *turns("Go on", "On")]},
    row([BUS], [{"from": "system", "value": "Be brief."}, *turns("<image>What?", "Bus")]),
]
RU = [
    {
        "type": "conversation",
        "conversations": turns("<image>\nСколько людей на фото?", "Двое.", "Что они делают?", "Катаются на лыжах."),
        "id": "000000033471",
        "image": "train2014/COCO_train2014_000000033471.jpg",
    },
    # the validation split has no marker
    {
        "type": "complex_reasoning",
        "conversations": turns("Почему «зебра» стоит?", "Она отдыхает…"),
        "id": "000000000042",
        "image": "COCO_val2014_000000000042.jpg",
    },
]


@pytest.fixture
def images(tmp_path: Path, make_png: Callable[..., bytes]) -> Callable[..., Path]:
    """Writes pictures of these names, a colour each, below tmp_path / images."""

    def write(*names: str) -> Path:
        for i, name in enumerate(names):
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(make_png((i, 0, 0)))
        return tmp_path / "images"

    return write


def saved(path: Path, rows: list[Fields]) -> Path:
    """The rows as JSON, JSON lines or Parquet, by the suffix."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]", "utf-8")
    return path


def made(reader: str, path: Path, images: Path | None = None, **options: Any) -> list[Sample]:
    drafts = list(find_reader(reader).drafts(ReaderOptions(path, images, **options)))
    assert [draft.make() for draft in drafts] == [draft.make() for draft in drafts]  # it may be called twice
    return [draft.make() for draft in drafts]


def rejection(reader: str, path: Path, images: Path | None = None, **options: Any) -> tuple[str, str, str]:
    """Place, kind and message of the one row."""
    (draft,) = find_reader(reader).drafts(ReaderOptions(path, images, **options))
    with pytest.raises(BadInput) as caught:
        draft.make()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return draft.place, caught.value.kind, str(caught.value)


def told(sample: Sample) -> list[str]:
    """The dialogue, a message a text, with ▣ for the image and | between parts."""
    return [f"{m.role}: " + "|".join(getattr(part, "text", "▣") for part in m.content) for m in sample.messages]


MIX_TOLD = [
    [
        "user: ▣|What are the colors of the bus in the image?",
        "assistant: The bus in the image is white and red.",
        "user: What feature can be seen on the back of the bus?\nAnswer in one line.",
        "assistant: An advertisement.",
    ],
    ["user: Is it overcast?\nAnswer in a word.|▣", "assistant: No"],
    ["user: ▣|Who wrote this?", "assistant: H. Jackson Brown"],
    ["user: Look at|▣|, then\n  read it", "assistant: Ok"],
    ["user: Hello", "assistant: Hello.", "user: ▣|Where?", "assistant: [0.1, 0.2, 0.3, 0.4]"],
    ["user: Who?\n\n- a\n- b", "assistant: Ann"],
    ["user: Render a summary of the photo.|▣", "assistant: select luxury furniture"],
    ["user: ▣", "assistant: a grey watch"],
    ["user: Go on", "assistant: On"],
    ["system: Be brief.", "user: ▣|What?", "assistant: Bus"],
]


@pytest.mark.parametrize("name", ["mix.json", "mix.jsonl"])
def test_the_mix(tmp_path: Path, images: Callable[..., Path], name: str) -> None:
    names = [row["image"] for row in MIX[:9] if "image" in row]
    samples = made("llava", saved(tmp_path / name, MIX), images(*names))
    assert [told(sample) for sample in samples] == MIX_TOLD
    assert [sample.key for sample in samples] == [f"llava-train-{i:09d}" for i in range(10)]
    ids = ["000000033471", "2354786", "140031996X", "3", "1592", "wgByO4Y_0", "004539375", "002239345", "VTMLLw3_0"]
    assert [sample.id for sample in samples] == [*ids, "000000033471"]  # ids may repeat
    assert {(sample.lang, sample.source) for sample in samples} == {("en", "llava")}
    assert [sample.image for sample in samples if sample.image] == [
        (images() / name).read_bytes() for name in [*names, BUS]
    ]


@pytest.mark.parametrize("name", ["ru.json", "ru.parquet"])
def test_llava_instruct_ru(tmp_path: Path, images: Callable[..., Path], name: str) -> None:
    folder = images("train2017/000000033471.jpg", "val2014/COCO_val2014_000000000042.jpg")
    samples = made("llava-instruct-ru", saved(tmp_path / name, RU), folder, split="val.1")
    assert [told(sample) for sample in samples] == [
        [
            "user: ▣|Сколько людей на фото?",
            "assistant: Двое.",
            "user: Что они делают?",
            "assistant: Катаются на лыжах.",
        ],
        ["user: ▣|Почему «зебра» стоит?", "assistant: Она отдыхает…"],
    ]
    assert [(sample.key, sample.lang, sample.source) for sample in samples] == [
        ("llava-instruct-ru-val-1-000000000", "ru", "llava-instruct-ru/conversation"),
        ("llava-instruct-ru-val-1-000000001", "ru", "llava-instruct-ru/complex_reasoning"),
    ]


def test_turns_of_a_table_may_be_two_lists(tmp_path: Path) -> None:
    lists = {"from": ["human", "gpt"], "value": ["Кто?", "Аня"]}
    (sample,) = made("llava", saved(tmp_path / "r.parquet", [{"id": "1", "conversations": lists}]), lang="ru")
    assert (told(sample), sample.lang) == (["user: Кто?", "assistant: Аня"], "ru")


BROKEN = {
    "no object": (1, "schema", "an object is wanted"),
    "field missing": (row(conversations=...), "schema", "'conversations': a list of turns is wanted"),
    "no dialogue": (row(conversations={}), "schema", r'conversations: \{"from", "value"\} or'),
    "dialogue of a wrong type": (row(conversations="hi"), "schema", "'conversations': a list of turns is wanted"),
    "turn without a value": (row(conversations=[{"from": "human"}]), "schema", r"conversations\[0\]: .*is wanted"),
    "value of a wrong type": (
        row(conversations=turns("<image>", 3)),
        "schema",
        r"conversations\[1\]: a text is wanted",
    ),
    "empty value": (row(conversations=turns("<image>", "")), "text", r"conversations\[1\]: an empty text"),
    "blank value": (row(conversations=turns("<image>", " \n")), "text", r"conversations\[1\]: a non-empty text"),
    "NUL": (row(conversations=turns("<image>", "a\0")), "text", r"conversations\[1\]: NUL"),
    "half a pair": (row(conversations=turns("<image>", "\ud83d")), "text", r"conversations\[1\]: .*not valid Unicode"),
    "unknown role": (
        row(conversations=[{"from": "observation", "value": "x"}]),
        "schema",
        r"conversations\[0\]: the role 'observation' is none of human",
    ),
    "ends with a question": (row(conversations=turns("<image>", "a", "b")), "schema", "ends with the assistant"),
    "two questions": (
        row(conversations=turns("<image>", "a") + turns("b", "c")[:1] + turns("d", "e")),
        "schema",
        r"conversations\[3\]: a turn of the user where one of the assistant",
    ),
    "late system": (
        row(conversations=[*turns("<image>", "a"), {"from": "system", "value": "s"}]),
        "schema",
        r"conversations\[2\]: a turn of the system",
    ),
    "too many turns": (row(conversations=turns(*["<image>"] * 2001)), "limit", "more than 2000 turns"),
    "marker missing": (row(conversations=turns("What?", "A bus")), "schema", "0 times <image> and the row has one"),
    "two markers": (row(conversations=turns("<image> and <image>", "a")), "schema", "2 times <image>"),
    "ten thousand markers": (row(conversations=turns("<image>" * 10_000, "a")), "schema", "10000 times <image>"),
    "marker in two turns": (row(conversations=turns("<image>", "a", "<image>", "b")), "schema", "2 times <image>"),
    "marker of the assistant": (
        row(conversations=turns("<image>", "see <image>")),
        "schema",
        "<image> in the words of the assistant",
    ),
    "marker without image": (row(..., turns("<image>\na", "b")), "schema", "1 times <image> and the row has no image"),
    "several images": (row([BUS, BUS]), "schema", "the row has 2 images"),
    "id of a wrong type": (row(id=[1]), "schema", "field 'id'"),
    "id that is no number": (row(id=True), "schema", "field 'id'"),
    "image of a wrong type": (row(7), "schema", "the image should be a path"),
    "missing image": (row("coco/train2017/000000000001.jpg"), "image-missing", "000000000001.jpg' is not in --images"),
    "path out of the folder": (row("../../secret.png"), "image-missing", "lies outside --images"),
    "COCO's number behind a path out of the folder": (
        row("../x/000000033471.jpg"),
        "image-missing",
        "lies outside --images",
    ),
    "absolute path": (row("/etc/passwd"), "image-missing", "lies outside --images"),
    "link out of the folder": (row("link.png"), "image-missing", "is a link out of --images"),
    "gif": (row("ocr_vqa/images/780.jpg"), "image", "the image is a gif"),
    "no picture": (row("text.jpg"), "image", "not a JPEG, PNG or WebP"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("name", ["r.json", "r.jsonl"])
def test_broken_row_is_rejected(tmp_path: Path, images: Callable[..., Path], case: str, name: str) -> None:
    folder = images(BUS)
    (folder / "text.jpg").write_text("<html>not found</html>")
    (folder / "ocr_vqa/images").mkdir(parents=True)
    Image.new("P", (2, 2)).save(folder / "ocr_vqa/images/780.gif")
    (tmp_path / "secret.png").write_bytes((folder / BUS).read_bytes())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    given, kind, message = BROKEN[case]
    path = tmp_path / name
    path.write_text(json.dumps([given]) if name == "r.json" else json.dumps(given))
    place, found, why = rejection("llava", path, folder)
    assert found == kind
    assert (place, found) == (f"{path}: row 1" if name == "r.json" else f"{path}:1", kind)
    with pytest.raises(BadInput, match=message):
        raise BadInput(why)


def test_broken_sets_are_refused_in_one_line(tmp_path: Path, images: Callable[..., Path]) -> None:
    whole = saved(tmp_path / "mix.json", MIX).read_bytes()
    (tmp_path / "cut.json").write_bytes(whole[: len(whole) // 2])
    saved(tmp_path / "ru.parquet", RU)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "ru.parquet").read_bytes()[:-20])
    for options, message in (
        ({"input": None}, "reader llava: give the JSON"),
        ({"input": tmp_path / "no.json"}, "no.json: cannot be read"),
        ({"input": tmp_path / "cut.json"}, "cut.json: "),
        ({"input": tmp_path / "cut.parquet"}, "cut.parquet: not a readable Parquet"),
        ({"input": tmp_path / "mix.json", "images": tmp_path / "no"}, "--images .*/no: cannot be read"),
        ({"input": tmp_path / "mix.json", "images": tmp_path / "mix.json"}, "--images .*: not a folder"),
        ({"input": tmp_path / "mix.json", "merge": False}, "reader llava has no use for --no-merge"),
    ):
        with pytest.raises(BadInput, match=message) as caught:
            list(find_reader("llava").drafts(ReaderOptions(**options)))
        assert "\n" not in str(caught.value)


def test_links_are_followed_when_told_so(tmp_path: Path, images: Callable[..., Path]) -> None:
    folder = images(BUS)
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/coco").symlink_to(tmp_path / "elsewhere/coco")
    path = saved(tmp_path / "r.json", [row()])
    assert rejection("llava", path, folder)[1] == "image-missing"
    assert made("llava", path, folder, follow_links=True)[0].image


@pytest.mark.parametrize(
    ("named", "on_disk"),
    [
        (BUS, "train2017/000000033471.jpg"),
        (BUS, "000000033471.jpg"),
        (BUS, "coco/train2014/COCO_train2014_000000033471.jpg"),
        ("000000033471.jpg", "train2017/000000033471.jpg"),
        ("000000033471.jpg", "val2014/COCO_val2014_000000033471.jpg"),
        ("COCO_train2014_000000033471.jpg", "coco/train2017/000000033471.jpg"),
        ("train2014/COCO_train2014_000000033471.jpg", "COCO_train2014_000000033471.jpg"),
        ("gqa/images/2354786.jpg", "images/2354786.jpg"),
        ("ocr_vqa/images/140031996X.jpg", "ocr_vqa/images/140031996X.png"),
        ("textvqa/train_images/011e7e629fb9ae7b.jpg", "train_images/011e7e629fb9ae7b.jpg"),
        ("vg/VG_100K/1592.jpg", "vg/VG_100K_2/1592.jpg"),
        ("vg/VG_100K_2/1592.jpg", "VG_100K/1592.jpg"),
        ("00453/004539375.jpg", "00453/004539375.jpg"),
    ],
)
def test_image_is_found_in_the_layouts_of_its_set(
    tmp_path: Path, images: Callable[..., Path], named: str, on_disk: str
) -> None:
    folder = images("other/picture.png", on_disk)
    (sample,) = made("llava", saved(tmp_path / "r.json", [row(named)]), folder)
    assert (sample.image, sample.image_ext) == ((folder / on_disk).read_bytes(), "png")


def test_image_is_looked_up_under_its_own_name_first(tmp_path: Path, images: Callable[..., Path]) -> None:
    folder = images("ocr_vqa/images/1.png", "ocr_vqa/images/1.jpg")
    (sample,) = made("llava", saved(tmp_path / "r.json", [row("ocr_vqa/images/1.jpg")]), folder)
    assert sample.image == (folder / "ocr_vqa/images/1.jpg").read_bytes()
    for name in ("../1.jpg", "/1.jpg", "", "."):
        assert alternatives(name) == (name,)


def test_rows_name_images_and_no_folder_is_given(tmp_path: Path) -> None:
    _, kind, message = rejection("llava", saved(tmp_path / "r.json", [row()]))
    assert kind == "image-missing" and "--images" in message


def test_image_in_the_table_itself(tmp_path: Path, make_png: Callable[..., bytes]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "WEBP")
    rows = [row({"bytes": data, "path": "x.jpg"}) for data in (make_png(), buffer.getvalue(), b"GIF89a...")]
    drafts = list(find_reader("llava").drafts(ReaderOptions(saved(tmp_path / "r.parquet", rows))))
    assert [draft.make().image_ext for draft in drafts[:2]] == ["png", "webp"]
    with pytest.raises(BadInput, match="gif"):
        drafts[2].make()
