"""Published retrieval sets: XM3600, XTD10, Multi30k, xFlickr&CO, Flickr8k (WIT: wit.py).

    files of the publisher --a class per set--> Row: image, all its captions --> LazyPair

Each class says where the set comes from, what its folders hold, and which files of the publisher are read.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from mmalign.core.errors import UserError
from mmalign.data.sources.rows import (
    PublishedSet,
    Row,
    read_json_lines,
    read_lines,
    text_field,
    texts_field,
)

_FLICKR30K = ("flickr30k-images", "flickr30k_images", "images")  # subfolders in copies of the set
_COCO = ("train2014", "val2014", "images")


class Xm3600(PublishedSet):
    """Crossmodal-3600 (Thapliyal et al., EMNLP 2022, arXiv 2205.12522): 3,600 images, 36 languages."""

    kind: Literal["xm3600"]
    license: ClassVar = "captions: CC-BY-4.0; pictures: CC-BY-2.0 as listed by Open Images"

    # captions.jsonl            {"image/key", "image/locale", "<lang>": {"caption": [texts], ...}, ...}
    # images/<image/key>.jpg
    #
    # All captions of a language are kept, in the publisher's order: two protocols differ in whether they
    # use the first one or all. `caption/tokenized` and `caption/tokenized/lowercase` are not read. The
    # layout is as LAION-AI/CLIP_benchmark@55a7d82 (datasets/crossmodal3600.py) and
    # gregor-ge/Babel-ImageNet@317c498 (data_scripts/image_text_creation.py) read it; the publisher's own
    # files were not at hand.
    def rows(self) -> Iterator[Row]:
        for where, row in read_json_lines(self.find_file("captions.jsonl")):
            key = text_field(row, "image/key", where)
            captions = [
                (lang, text)
                for lang, value in row.items()
                if isinstance(value, dict)
                for text in texts_field(value, "caption", f"{where}: `{lang}`")
            ]
            if not captions:
                raise UserError(f"{where}: no field is a language with its captions")
            yield Row(key, self.find_image(f"{key}.jpg", where, ["images"]), captions, where)


class Xtd10(PublishedSet):
    """XTD10 (Aggarwal and Kale 2020, arXiv 2012.05107): 1,000 images of COCO, 11 languages."""

    kind: Literal["xtd10"]
    license: ClassVar = (
        "captions: Adobe Research License (noncommercial research), those of MIC and STAIR their own; "
        "pictures: Flickr's terms, see COCO"
    )

    # In adobe-research/Cross-lingual-Test-Dataset-XTD10@d77ff16, one caption per image and language, line n
    # of every file for image n; images in COCO's train2014/ and val2014/:
    #
    # XTD10/test_image_names.txt                            800 of train2014, 200 of val2014
    # XTD10/test_1kcaptions_{en,es,it,ko,pl,ru,tr,zh}.txt   the set itself
    # MIC/test_1kcaptions_{de,fr}.txt                       of the set MIC, arXiv 1510.03519
    # STAIR/test_1kcaptions_jp.txt                          of STAIR Captions; `jp` becomes `ja`
    def rows(self) -> Iterator[Row]:
        names = self.find_file("XTD10/test_image_names.txt", "test_image_names.txt")
        captions = {}
        for lang in ("de", "en", "es", "fr", "it", "jp", "ko", "pl", "ru", "tr", "zh"):
            places = ("XTD10/", "MIC/", "STAIR/", "")
            path = self.find_file(*(f"{place}test_1kcaptions_{lang}.txt" for place in places))
            captions["ja" if lang == "jp" else lang] = path
        return _line_by_line(self, names, captions, _COCO)


class Multi30k(PublishedSet):
    """Multi30k, task 1 (Elliott et al. 2016, arXiv 1605.00459): 1,000 images of Flickr30k, 4 languages."""

    kind: Literal["multi30k"]
    license: ClassVar = "captions: not stated; pictures: Flickr's terms, see Flickr30k"

    # In multi30k/dataset@a3d2e0d, line by line as XTD10:
    #
    # data/task1/image_splits/test_2016_flickr.txt          names of Flickr30k's images
    # data/task1/raw/test_2016_flickr.{cs,de,en,fr}.gz      raw text; the tokenized one is not read
    def rows(self) -> Iterator[Row]:
        test = "test_2016_flickr"
        places = ("data/task1/image_splits/", "image_splits/", "")
        names = self.find_file(*(f"{place}{test}.txt" for place in places))
        captions = {}
        for lang in ("cs", "de", "en", "fr"):
            files = (f"{place}{test}.{lang}" for place in ("data/task1/raw/", "raw/", ""))
            captions[lang] = self.find_file(
                *(f"{file}{end}" for file in files for end in (".gz", ""))
            )
        return _line_by_line(self, names, captions, _FLICKR30K)


def _line_by_line(
    source: PublishedSet, names: Path, captions: dict[str, Path], subfolders: Sequence[str]
) -> Iterator[Row]:
    images = read_lines(names)
    texts = {lang: read_lines(path) for lang, path in captions.items()}
    for lang, lines in texts.items():
        if len(lines) != len(images):
            raise UserError(
                f"{captions[lang]}: has {len(lines)} captions, but {names} names {len(images)} "
                "images; get both from one release"
            )
    for number, name in enumerate(images):
        where = f"{names}, line {number + 1}"
        image = source.find_image(name, where, subfolders)
        yield Row(name, image, [(lang, lines[number]) for lang, lines in texts.items()], where)


class XFlickrCO(PublishedSet):
    """xFlickr&CO of IGLUE (Bugliarello et al., ICML 2022, arXiv 2201.11732): 2,000 images, 8 languages."""

    kind: Literal["xflickrco"]
    license: ClassVar = "captions: MIT (IGLUE); pictures: Flickr's terms, see Flickr30k and COCO"

    # In e-bug/iglue@43cbac9, datasets/; 1,000 images are Flickr30k's and 1,000 COCO val2014's:
    #
    # xFlickrCO/annotations/<lang>/test.jsonl               {"id", "img_path", "sentences": [text]}
    #
    # A caption is blank in `de` and in `id`: IGLUE counts it as a query, we leave it out.
    def rows(self) -> Iterator[Row]:
        captions: dict[str, list[tuple[str, str]]] = defaultdict(list)
        first: dict[str, str] = {}  # image -> the line that names it first
        for lang in ("de", "en", "es", "id", "ja", "ru", "tr", "zh"):
            file = f"{lang}/test.jsonl"
            for where, row in read_json_lines(self.find_file(f"annotations/{file}", file)):
                name = text_field(row, "img_path", where)
                first.setdefault(name, where)
                captions[name] += [(lang, text) for text in texts_field(row, "sentences", where)]
        for name, where in first.items():
            image = self.find_image(name, where, (*_FLICKR30K, "val2014"))
            yield Row(name, image, captions[name], where)


class Flickr8k(PublishedSet):
    """Flickr8k (Hodosh, Young and Hockenmaier, JAIR 2013): 8,000 images, five English captions each."""

    kind: Literal["flickr8k"]
    license: ClassVar = "captions: not stated; pictures: Flickr's terms"

    # Flickr8k.token.txt                                    <name>.jpg#<0 to 4><TAB>caption
    # Flickr_8k.{trainImages,devImages,testImages}.txt      the names of each split
    # Flicker8k_Dataset/<name>.jpg                          (the publisher's spelling)
    #
    # The text files may be in Flickr8k_text/, as in the publisher's second archive. Captions of images that
    # no list names are not read; one of them has a name without an image (`2258277193_586949ec62.jpg.1`).
    # The layout is as loaders in the field read it, for example Raman-Raje/ImageCaptioning@62a7448
    # (descriptions.py); the publisher's own files were not at hand.
    def rows(self) -> Iterator[Row]:
        captions: dict[str, list[tuple[str, str]]] = defaultdict(list)
        path = self.find_file("Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt")
        for number, line in enumerate(read_lines(path), start=1):
            name, tab, text = line.partition("\t")
            image, hash_sign, _ = name.partition("#")
            if not tab or not hash_sign:
                sentence = "must look like `name.jpg#0`, a tab, and a caption"
                raise UserError(f"{path}, line {number}: {sentence}")
            captions[image].append(("en", text))
        subfolders = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
        for split, listed in (("train", "train"), ("val", "dev"), ("test", "test")):
            file = f"Flickr_8k.{listed}Images.txt"
            path = self.find_file(file, f"Flickr8k_text/{file}")
            for number, name in enumerate(read_lines(path), start=1):
                where = f"{path}, line {number}"
                if name not in captions:
                    raise UserError(f"{where}: Flickr8k.token.txt has no caption of `{name}`")
                image_path = self.find_image(name, where, subfolders)
                yield Row(name, image_path, captions[name], where, split)
