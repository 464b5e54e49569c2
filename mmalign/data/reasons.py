"""Why a sample, or a part of a shard, is not used: the one list of reasons, each with a plain sentence.

The keys are what files and metrics count by (`refused` in manifests, `unusable.jsonl`,
`data/unusable/<reason>`), so a key never changes its meaning.
"""

REASONS = {
    # in the structure of a tar (shards/tar.py)
    "bad header": "no valid tar header where one is expected",
    "cut off": "the shard ends before the member does",
    "zeros": "zeros where members are expected",
    "padding": "the bytes after a member are not zero, so its size or its end is damaged",
    "no end mark": "the shard ends without the end mark of a tar: it may be cut off",
    "too many members": "the shard has more than 1,000,000 members",
    "extended header": "a pax or GNU header is damaged or too large",
    "link": "a member is a link",
    "device": "a member is a device",
    "sparse": "a member is a sparse file or of an unknown type",
    "unsafe name": "a member's name is absolute, or contains `..` or a control character",
    "name too long": "a member's name has more than 1,024 bytes",
    "name not UTF-8": "a member's name is not UTF-8",
    # in a sample (shards/scan.py, shards/reader.py)
    "read error": "the file cannot be opened or read",
    "checksum": "a member's bytes are not those that were indexed",
    "index": "its row in the index is invalid",
    "too large": "a member has more bytes than are allowed",
    "no image": "it has no image member",
    "not an image": "its image member is not a JPEG, PNG or WebP",
    "does not decode": "its image cannot be decoded",
    "too many pixels": "its image has more pixels than are allowed",
    "no caption": "it has no caption, or only empty ones",
    "json": "its JSON does not parse, is nested too deeply or is not an object",
    "not UTF-8": "its caption, its JSON or another of its texts is not UTF-8",
    "caption": "its captions have another format than expected, or contain a NUL",
    "caption too long": "a caption has more than 20,000 characters",
    "language": "a caption has no valid language code",
    "duplicate suffix": "two of its members have the same suffix",
    "duplicate key": "its key was already used in the shard",
    "not adjacent": "members of other samples are between its own",
    "beside damage": "damaged bytes follow directly after its members",
    "fewer samples": "the shard has fewer samples than a file beside it says",
    # in a row of a source (sources/)
    "row": "it does not have the format of its source",
    "missing": "missing, there is no such file",
    "outside": "its image is outside of the source's folders",
    "split": "its split is not known, or is not a valid name of a split",
    "status": "its image is not in the shard that its metadata name",
}
