"""Language families: which languages are averaged together, so that a mean hides none.

    language code (BCP-47) -> its first subtag -> family, or none

A family here is a branch of the size by which papers report (Romance, Germanic, Indo-Aryan, Bantu, ...), not
a whole stock such as Indo-European. The branches follow Glottolog 5 (https://glottolog.org) and ISO 639-5,
the standard for groups of languages; Atlantic, Chadic, Gur, Kwa and Ubangian are meant as in common use.
Creoles stand by themselves, as in ISO 639-5, not under the language that gave their words. Constructed
languages have no family.

Listed are the languages of XM3600, WIT, Babel-ImageNet, XNLI, SIB-200's development set, African and Global
Storybooks and the demo, and more that public image-caption sets hold. Codes are ISO 639-1 where there is one,
else ISO 639-3, and the few old or collective ones that such sets use (`iw`, `in`, `roa`).
"""

from collections.abc import Iterable
from functools import lru_cache

_MEMBERS = {
    "Albanian": "sq",
    "Algonquian": "cr chy oj",
    "Armenian": "hy hyw",
    "Athabaskan": "nv",
    "Atlantic": "ff wo fuc fuf srr dyo",
    "Austroasiatic": "vi km mnw sat kha",
    "Aymaran": "ay",
    "Baltic": "lt lv ltg bat sgs prg",
    "Bantu": (
        "sw zu xh st nso tn ts ss nr ve sn ny rw rn lg ln kg ki kj ng hz lu bem cce guz kam lko loz "
        "lsm lwg mer mhw myx nle nuj toh toi tsc ttj tum umb xog nyn run swc swh tsn kmb lua luy nd "
        "kwn"
    ),
    "Basque": "eu",
    "Berber": "ber kab shi tzm zgh rif taq",
    "Celtic": "br cy ga gd gv kw",
    "Central-Sudanic": "lgg luc",
    "Chadic": "ha",
    "Chukotko-Kamchatkan": "ckt",
    "Creole": "ht jam gyn mfe tpi bi pap srn djk cpe cpf cpp pih gcr kea bzj",
    "Cushitic": "om so aa sid",
    "Dravidian": "ta te kn ml tcy",
    "Eskimo-Aleut": "iu ik kl",
    "Germanic": (
        "en de nl sv da no nb nn is fo af fy lb li yi nds sco ang bar gsw ksh pdc pfl stq vls zea "
        "frr got goh hrx"
    ),
    "Greek": "el grc pnt",
    "Gur": "dag dga gur mos kbp",
    "Igboid": "ig",
    "Indo-Aryan": (
        "hi bn ur mr gu pa ne si or as sa sd ks bh bho mai mag awa hne pnb skr lah gom dv pi bpy "
        "dty rom rmy hif kok doi syl ctg"
    ),
    "Iranian": "fa ku ckb ps tg prs os mzn glk lrc zza diq kmr bal ae pes bgn",
    "Iroquoian": "chr",
    "Japonic": "ja",
    "Kartvelian": "ka xmf lzz",
    "Koreanic": "ko",
    "Kwa": "ak tw ee gaa gjn fon fat",
    "Malayo-Polynesian": (
        "id ms jv su tl fil ceb ilo mg mi haw sm to ty fj ace ban bjn bug min pag pam war hil bik "
        "bcl gor tet ch mh na nia mad map tvl gil rap niu zsm plt mui"
    ),
    "Mande": "bm dyu men mnk sus",
    "Mayan": "kek quc yua mam",
    "Mongolic": "mn bxr xal khk mvf",
    "Muskogean": "mus cho",
    "Nilotic": "luo adh anu kln mas saq teo tuv din nus keo dik",
    "Northeast-Caucasian": "ce av lez inh lbe dar tab",
    "Northwest-Caucasian": "ab ady kbd",
    "Quechuan": "qu quz quy",
    "Romance": (
        "fr es it pt ro ca gl oc la ast an rm sc scn fur lad lij lmo pms vec nap co wa eml ext frp "
        "mo mwl nrm pcd roa rup egl rgn lld"
    ),
    "Saharan": "kr",
    "Semitic": "ar he am ti mt arz ary aeb apc acm ajp arc arb ars syr tig gez",
    "Sinitic": "zh yue wuu nan hak gan cdo cmn lzh hsn",
    "Slavic": "ru uk be pl cs sk sl hr sr bs sh bg mk cu hsb dsb csb szl rue cnr",
    "Songhay": "dje ses khq",
    "Tai": "th lo za shn",
    "Tibeto-Burman": "my bo dz adx khg rki new mni lus ii kac bod",
    "Tupian": "gn gun",
    "Turkic": "tr az kk ky uz tk tt ba ug cv sah tyv azb crh kaa gag krc kum nog alt kjh azj uzn",
    "Ubangian": "sg zne",
    "Uralic": "fi et hu se mhr mrj myv mdf udm kv koi vep vro fiu olo smn sma fkv liv krl",
    "Uto-Aztecan": "nah nhe",
    "Yoruboid": "yo",
}
_OLD = {"iw": "he", "in": "id", "ji": "yi", "jw": "jv"}  # withdrawn codes that data still use


def family_of(code: str) -> str | None:
    """The family of a language, for example `Romance` for `pt-BR`; None if it has none here."""
    first = code.replace("_", "-").split("-")[0].lower()
    return _families().get(_OLD.get(first, first))


def by_family(codes: Iterable[str]) -> dict[str, list[str]]:
    """Family -> its languages among `codes`, in their order; families sorted by name."""
    members: dict[str, list[str]] = {}
    for code in codes:
        family = family_of(code)
        if family is not None:
            members.setdefault(family, []).append(code)
    return dict(sorted(members.items()))


@lru_cache(maxsize=1)
def _families() -> dict[str, str]:
    return {code: family for family, codes in _MEMBERS.items() for code in codes.split()}
