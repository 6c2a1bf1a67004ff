"""What the names of columns mean, the one home of it: the spellings of tools, and what people write in several languages.

Knows nothing of formats: the parts are "prompt", "completion" and so on, whatever a format calls them. What follows from a name is
studio.datasets.telling's to say.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

# part -> how tools spell it, in small letters; a format that reads the part looks for them in this order
SPELLED: dict[str, tuple[str, ...]] = {
    part: tuple(names.split())
    for part, names in {
        "prompt": "prompt question instruction query",
        "messages": "conversations conversation messages",
        "system": "system system_prompt system_message system_instruction developer developer_message",
        "tools": "tools functions tool_schemas",
        "history": "history",
        "reasoning": "reasoning reasoning_content thinking reasoning_text reasoning_trace thought thoughts think "
        "chain_of_thought cot complex_cot rationale",
        "chosen": "chosen chosen_response answer_chosen chosen_answer chosen_output chosen_completion chosen_messages "
        "preferred_output preferred_response preferred more_preferred response_j positive_messages",
        "rejected": "rejected rejected_response answer_rejected rejected_answer rejected_output rejected_completion rejected_messages "
        "non_preferred_output non_preferred_response non_preferred nonpreferred dispreferred dispreferred_output dispreferred_response "
        "less_preferred response_k negative_messages rejected_prompt",
        "responses": "responses answers completions candidates outputs generations ranked_responses",
        "label": "label kto_tag kto_label desirable is_desirable is_good",
    }.items()
}
# part -> names that say as much, and that no format takes for it unasked
RELATED: dict[str, tuple[str, ...]] = {
    part: tuple(names.split())
    for part, names in {
        "messages": "dialogue dialog",
        "completion": "completion completions response responses output outputs answer answers target targets reply replies",
        "rejected": "unchosen",
        "label": "labels",
        "winner": "winner better_response_id safer_response_id better_id preferred_id human_preference overall_preference preference_label",
        "ranks": "ranks ranking answer_ranks response_ranks",
        "learned": "weight weights sample_weight loss_weight train trainable training loss train_on loss_mask train_mask loss_scale "
        "train_detail",
        "segments": "segments",
        "images": "image images image_url image_urls image_path image_paths pixel_values picture pictures img imgs",
        "sound": "audio audios audio_url audio_path input_audio speech",
        "videos": "video videos video_url video_path",
        "parent": "parent_id",
        "choices": "choices options answer_choices",
        "correction": "corrected reflection",
    }.items()
}
# language -> part -> words for it, as a dictionary has them
NAMES: dict[str, dict[str, str]] = {
    "English": {
        "prompt": "prompt question query request instruction input",
        "completion": "completion answer response reply output",
        "system": "system persona",
        "chosen": "chosen preferred better",
        "rejected": "rejected dispreferred worse",
        "label": "label verdict",
        "messages": "messages conversation dialogue dialog chat turns",
        "context": "context passage background",
        "history": "history",
        "tools": "tools functions",
        "reasoning": "reasoning thinking thought rationale",
        "text": "text document story",
    },
    "German": {
        "prompt": "frage fragen fragestellung anfrage aufgabe anweisung eingabe kundenfrage",
        "completion": "antwort antworten erwiderung ausgabe lösung musterantwort",
        "system": "systemprompt systemnachricht systemtext",
        "chosen": "bevorzugt gewählt besser bessere",
        "rejected": "abgelehnt verworfen schlechter schlechtere",
        "label": "bewertung urteil kennzeichnung",
        "messages": "gespräch unterhaltung dialog nachrichten chatverlauf",
        "context": "kontext zusammenhang hintergrund",
        "history": "verlauf vorgeschichte",
        "tools": "werkzeuge funktionen",
        "reasoning": "begründung überlegung gedankengang denkweg",
        "text": "text dokument geschichte",
    },
    "French": {
        "prompt": "question requête consigne demande entrée invite",
        "completion": "réponse réponses sortie",
        "system": "système",
        "chosen": "choisi choisie préféré préférée meilleure",
        "rejected": "rejeté rejetée pire",
        "label": "étiquette jugement",
        "messages": "conversation dialogue messages échange",
        "context": "contexte",
        "history": "historique",
        "tools": "outils fonctions",
        "reasoning": "raisonnement réflexion",
        "text": "texte",
    },
    "Spanish": {
        "prompt": "pregunta consulta instrucción entrada petición",
        "completion": "respuesta salida contestación",
        "system": "sistema",
        "chosen": "elegido elegida preferida preferido",
        "rejected": "rechazado rechazada",
        "label": "etiqueta valoración",
        "messages": "conversación diálogo mensajes",
        "context": "contexto",
        "history": "historial",
        "tools": "herramientas funciones",
        "reasoning": "razonamiento",
        "text": "texto",
    },
    "Portuguese": {
        "prompt": "pergunta instrução solicitação questão",
        "completion": "resposta saída",
        "chosen": "escolhido escolhida",
        "rejected": "rejeitado rejeitada",
        "label": "rótulo",
        "messages": "conversa mensagens",
        "reasoning": "raciocínio",
    },
    "Italian": {
        "prompt": "domanda istruzione richiesta",
        "completion": "risposta uscita",
        "chosen": "scelto scelta preferita",
        "rejected": "rifiutato rifiutata",
        "label": "etichetta",
        "messages": "conversazione messaggi",
        "context": "contesto",
        "reasoning": "ragionamento",
        "text": "testo",
    },
    "Dutch": {
        "prompt": "vraag opdracht invoer",
        "completion": "antwoord uitvoer",
        "chosen": "gekozen",
        "rejected": "afgewezen",
        "label": "beoordeling",
        "messages": "gesprek berichten",
        "reasoning": "redenering",
        "text": "tekst",
    },
    "Polish": {"prompt": "pytanie polecenie", "completion": "odpowiedź", "messages": "rozmowa wiadomości", "text": "tekst"},
    "Czech": {"prompt": "otázka dotaz pokyn", "completion": "odpověď", "messages": "rozhovor zprávy"},
    "Swedish": {"prompt": "fråga", "completion": "svar", "messages": "samtal meddelanden"},
    "Danish": {"prompt": "spørgsmål", "completion": "svar", "messages": "samtale beskeder"},
    "Norwegian": {"prompt": "spørsmål", "completion": "svar", "messages": "samtale meldinger"},
    "Finnish": {"prompt": "kysymys", "completion": "vastaus", "messages": "keskustelu"},
    "Hungarian": {"prompt": "kérdés", "completion": "válasz", "messages": "beszélgetés"},
    "Romanian": {"prompt": "întrebare", "completion": "răspuns", "messages": "conversație"},
    "Turkish": {"prompt": "soru istem", "completion": "cevap yanıt", "messages": "konuşma sohbet"},
    "Indonesian": {"prompt": "pertanyaan", "completion": "jawaban", "messages": "percakapan"},
    "Vietnamese": {"prompt": "câuhỏi", "completion": "trảlời câutrảlời", "messages": "hộithoại"},
    "Greek": {"prompt": "ερώτηση", "completion": "απάντηση", "messages": "συνομιλία", "text": "κείμενο"},
    "Russian": {
        "prompt": "вопрос запрос инструкция задание",
        "completion": "ответ",
        "system": "система",
        "label": "метка оценка",
        "messages": "диалог разговор сообщения",
        "context": "контекст",
        "reasoning": "рассуждение",
        "text": "текст",
    },
    "Ukrainian": {"prompt": "питання запитання запит", "completion": "відповідь", "messages": "розмова"},
    "Arabic": {"prompt": "سؤال السؤال", "completion": "جواب الجواب إجابة الإجابة", "messages": "محادثة", "text": "نص"},
    "Hebrew": {"prompt": "שאלה", "completion": "תשובה", "messages": "שיחה"},
    "Persian": {"prompt": "پرسش سوال", "completion": "پاسخ", "messages": "گفتگو", "text": "متن"},
    "Hindi": {"prompt": "प्रश्न सवाल", "completion": "उत्तर जवाब", "messages": "बातचीत"},
    "Thai": {"prompt": "คำถาม", "completion": "คำตอบ", "messages": "บทสนทนา"},
    "Chinese": {
        "prompt": "问题 問題 提问 提問 指令 提示 输入 輸入 问",
        "completion": "回答 答案 回复 回覆 输出 輸出 答",
        "system": "系统 系統",
        "chosen": "选中 偏好 更好",
        "rejected": "拒绝 拒絕 较差",
        "label": "标签 標籤",
        "messages": "对话 對話 消息",
        "context": "上下文 背景",
        "history": "历史 歷史",
        "tools": "工具",
        "reasoning": "推理 思考",
        "text": "文本 正文",
    },
    "Japanese": {
        "prompt": "質問 問い 指示 入力",
        "completion": "応答 答え 出力 返答",
        "messages": "会話 対話",
        "context": "文脈",
        "history": "履歴",
        "reasoning": "推論",
        "text": "本文 テキスト",
    },
    "Korean": {
        "prompt": "질문 지시 입력",
        "completion": "답변 응답 대답 출력",
        "messages": "대화",
        "context": "문맥",
        "reasoning": "추론",
        "text": "텍스트",
    },
}
# beside any of these the name says something about a part, such as its number: it is not the part itself
ABOUT = {
    word
    for words in (
        "id ids nr no num number nummer numero index count anzahl len length tokens",
        "date datum fecha time zeit type typ lang language sprache category kategorie",
        "source quelle fuente url link author autor score",
    )
    for word in words.split()
}
MIN_LETTERS = 4  # of a word of an alphabet that a longer word may end with; two signs are a word where signs are words


@dataclass(frozen=True)
class NameMeaning:
    """The part that a name stands for, the language that says so, and whether the name is that word and nothing more."""

    part: str
    language: str
    is_whole: bool


def meaning(name: str) -> NameMeaning | None:
    """What the name of a column says; None where it says nothing that is known."""
    words = _words(name)
    whole = "".join(words)
    if whole in _KNOWN:
        return NameMeaning(*_KNOWN[whole], is_whole=True)
    if ABOUT.intersection(words):
        return None
    for word in words:
        if word in _KNOWN:
            return NameMeaning(*_KNOWN[word], is_whole=False)
    for known, said in _KNOWN.items():
        if len(known) >= _least(known) and any(word.endswith(known) for word in words):
            return NameMeaning(*said, is_whole=False)
    return None


def _words(name: str) -> list[str]:
    """In small letters without accents; numbers left out."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    plain = unicodedata.normalize("NFKD", parted).casefold()
    letters = "".join(char for char in plain if not unicodedata.combining(char))
    return re.findall(r"[^\W\d_]+", letters)


def _least(word: str) -> int:
    if word.isascii() or unicodedata.name(word[0], "").startswith(("LATIN", "CYRILLIC", "GREEK")):
        return MIN_LETTERS
    return 2


def _known() -> dict[str, tuple[str, str]]:
    """Word -> part and language. A word of several languages is the first one's; longer words come first."""
    found: dict[str, tuple[str, str]] = {}
    for language, parts in NAMES.items():
        for part, words in parts.items():
            for word in words.split():
                found.setdefault("".join(_words(word)), (part, language))
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


_KNOWN = _known()
