"""Language codes of publishers -> BCP-47, the code that everything here carries.

    swh_Latn (FLORES-200) -+
    swa (ISO 639-3)       -+-> sw
    swahili (English name)-+

BCP-47 takes the shortest code that ISO 639 has (RFC 5646, section 2.2.1) and knows a script only
where it tells something: `arb_Arab` is `ar`, `arb_Latn` is `ar-Latn`. A language without a code of
two letters keeps its three.
"""

# ISO 639-3 -> ISO 639-1, with the individual languages that stand for their macrolanguage in the
# published sets (`arb` is Standard Arabic, `cmn` is Mandarin). Arabic dialects keep their own codes.
_PAIRS = """
    aar:aa abk:ab afr:af aka:ak als:sq amh:am ara:ar arb:ar arg:an asm:as ava:av aym:ay ayr:ay
    aze:az azj:az bak:ba bam:bm bel:be ben:bn bis:bi bod:bo bos:bs bre:br bul:bg cat:ca ces:cs
    cha:ch che:ce chv:cv cmn:zh cor:kw cos:co cym:cy dan:da deu:de div:dv dzo:dz ell:el eng:en
    epo:eo est:et eus:eu ewe:ee fao:fo fas:fa fij:fj fin:fi fra:fr fry:fy ful:ff gaz:om gla:gd
    gle:ga glg:gl glv:gv grn:gn guj:gu hat:ht hau:ha heb:he her:hz hin:hi hmo:ho hrv:hr hun:hu
    hye:hy ibo:ig ido:io iii:ii iku:iu ile:ie ina:ia ind:id ipk:ik isl:is ita:it jav:jv jpn:ja
    kal:kl kan:kn kas:ks kat:ka kau:kr kaz:kk khk:mn khm:km kik:ki kin:rw kir:ky kmr:ku knc:kr
    kom:kv kon:kg kor:ko kua:kj kur:ku lao:lo lat:la lav:lv lim:li lin:ln lit:lt ltz:lb lub:lu
    lug:lg lvs:lv mah:mh mal:ml mar:mr mkd:mk mlg:mg mlt:mt mon:mn mri:mi msa:ms mya:my nau:na
    nav:nv nbl:nr nde:nd ndo:ng nep:ne nld:nl nno:nn nob:nb nor:no npi:ne nya:ny oci:oc oji:oj
    ori:or orm:om ory:or oss:os pan:pa pbt:ps pes:fa plt:mg pol:pl por:pt pus:ps que:qu quy:qu
    roh:rm ron:ro run:rn rus:ru sag:sg san:sa sin:si slk:sk slv:sl sme:se smo:sm sna:sn snd:sd
    som:so sot:st spa:es sqi:sq srd:sc srp:sr ssw:ss sun:su swa:sw swe:sv swh:sw tah:ty tam:ta
    tat:tt tel:te tgk:tg tgl:tl tha:th tir:ti ton:to tsn:tn tso:ts tuk:tk tur:tr twi:tw uig:ug
    ukr:uk urd:ur uzb:uz uzn:uz ven:ve vie:vi wln:wa wol:wo xho:xh ydd:yi yid:yi yor:yo zha:za
    zho:zh zsm:ms zul:zu
"""
_SHORT = dict(pair.split(":") for pair in _PAIRS.split())

# The written forms of FLORES-200 that are not the usual one of their language.
_UNUSUAL = {
    "ace-Arab", "arb-Latn", "bjn-Arab", "kas-Deva", "knc-Arab", "min-Arab", "taq-Tfng", "zho-Hant",
}  # fmt: skip

NAMES = {
    "arabic": "ar", "bengali": "bn", "english": "en", "finnish": "fi", "french": "fr",
    "german": "de", "hindi": "hi", "indonesian": "id", "italian": "it", "korean": "ko",
    "portuguese": "pt", "russian": "ru", "spanish": "es", "swahili": "sw", "telugu": "te",
}  # fmt: skip
"""Languages that publishers (XLM-T, TyDiQA) call by their English names."""


def bcp47(code: str) -> str:
    """The BCP-47 code of an ISO 639-3 code, a FLORES-200 code, an English name or a BCP-47 code.

    `swa`, `swh_Latn` and `swahili` are `sw`; `zho_Hans` is `zh`, `zho_Hant` is `zh-Hant`; `pt-BR`
    and codes that are not in the tables stay what they are.
    """
    code = NAMES.get(code, code).replace("_", "-")
    language, _, rest = code.partition("-")
    short = _SHORT.get(language, language)
    is_usual_script = len(rest) == 4 and len(language) == 3 and code not in _UNUSUAL
    return f"{short}-{rest}" if rest and not is_usual_script else short
