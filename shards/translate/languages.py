"""What models call the languages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """`name` is English, for prompts; `flores` is the code of FLORES-200, which NLLB uses: ISO 639-3 and script."""

    name: str
    flores: str


LANGUAGES = {
    "ar": Language("Arabic", "arb_Arab"),
    "be": Language("Belarusian", "bel_Cyrl"),
    "bg": Language("Bulgarian", "bul_Cyrl"),
    "cs": Language("Czech", "ces_Latn"),
    "de": Language("German", "deu_Latn"),
    "el": Language("Greek", "ell_Grek"),
    "en": Language("English", "eng_Latn"),
    "es": Language("Spanish", "spa_Latn"),
    "fi": Language("Finnish", "fin_Latn"),
    "fr": Language("French", "fra_Latn"),
    "he": Language("Hebrew", "heb_Hebr"),
    "hi": Language("Hindi", "hin_Deva"),
    "hu": Language("Hungarian", "hun_Latn"),
    "hy": Language("Armenian", "hye_Armn"),
    "it": Language("Italian", "ita_Latn"),
    "ja": Language("Japanese", "jpn_Jpan"),
    "ka": Language("Georgian", "kat_Geor"),
    "kk": Language("Kazakh", "kaz_Cyrl"),
    "ko": Language("Korean", "kor_Hang"),
    "ky": Language("Kyrgyz", "kir_Cyrl"),
    "nl": Language("Dutch", "nld_Latn"),
    "pl": Language("Polish", "pol_Latn"),
    "pt": Language("Portuguese", "por_Latn"),
    "ro": Language("Romanian", "ron_Latn"),
    "ru": Language("Russian", "rus_Cyrl"),
    "sr": Language("Serbian", "srp_Cyrl"),
    "sv": Language("Swedish", "swe_Latn"),
    "tg": Language("Tajik", "tgk_Cyrl"),
    "tr": Language("Turkish", "tur_Latn"),
    "tt": Language("Tatar", "tat_Cyrl"),
    "uk": Language("Ukrainian", "ukr_Cyrl"),
    "uz": Language("Uzbek", "uzn_Latn"),
    "vi": Language("Vietnamese", "vie_Latn"),
    "zh": Language("Chinese", "zho_Hans"),
}


def language_name(code: str) -> str:
    """The English name, or the code itself where we know none."""
    return LANGUAGES[code].name if code in LANGUAGES else code
