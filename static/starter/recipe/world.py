"""The closed world as conversations: facts, small talk, copying, one remembered name. Knows nothing of tokens or torch."""

from __future__ import annotations

import random
from collections.abc import Callable

from static.starter.recipe.facts import QUESTIONS, Fact, facts, words

Message = dict[str, str]
Exchange = tuple[str, str]  # what the user says, what the starter answers

IDENTITY = "I am a tiny demo model. I know a few facts and I can copy words."

# Per answer: trained phrasings, then phrasings kept for the evaluation.
SMALL_TALK: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Hello! How can I help you?": (
        ("Hello", "Hi", "Hey", "Hello!", "Hi there!", "Good morning", "Good evening", "Hello there", "hi", "hello", "Hey!"),
        ("Hi!", "Hello there!", "Good morning!"),
    ),
    "I am fine, thank you.": (
        ("How are you?", "How are you doing?", "Are you well?", "How do you feel?", "How is it going?", "how are you"),
        ("Hi, how are you?", "How are you today?"),
    ),
    "You are welcome!": (
        ("Thanks", "Thank you", "Thanks!", "Thank you!", "Thank you very much.", "Many thanks!", "thanks"),
        ("Thank you so much!", "Thanks a lot!"),
    ),
    "Goodbye! Have a nice day.": (
        ("Bye", "Goodbye", "Bye!", "See you later.", "Good night", "See you!", "bye"),
        ("Goodbye!", "See you later!"),
    ),
    IDENTITY: (
        (
            "Who are you?",
            "What are you?",
            "Tell me about yourself.",
            "What kind of model are you?",
            "Are you a robot?",
            "Are you a human?",
            "Are you a person?",
            "Who is this?",
            "who are you",
            "what are you",
            "Are you an AI?",
            "Which model are you?",
        ),
        ("So what are you?", "Please tell me what you are.", "Are you a model?", "Tell me who you are."),
    ),
    "I have no name. I am a tiny demo model.": (
        ("What is your name?", "Do you have a name?", "What are you called?", "Tell me your name.", "your name?"),
        ("Please tell me your name.", "How are you called?"),
    ),
    "I can answer small questions, copy words and remember your name.": (
        ("What can you do?", "What do you know?", "Help", "Can you help me?", "How can you help me?", "What are you good at?", "help me"),
        ("What can you do for me?", "Tell me what you can do."),
    ),
    "A short training script made me.": (
        ("Who made you?", "Who built you?", "Who trained you?", "Where do you come from?", "How were you made?"),
        ("Who has made you?", "Tell me who made you."),
    ),
    "I am sorry to hear that.": (
        ("I am sad.", "I am tired.", "I feel bad.", "I have a problem.", "I am ill."),
        ("I feel sad.", "I feel tired."),
    ),
    "I am glad to hear that!": (
        ("I am happy.", "I feel good.", "That is great!", "You are nice.", "Well done!", "Good answer."),
        ("I feel happy.", "You are great!"),
    ),
    "Why did the cow cross the road? To say moo!": (
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny."),
        ("Tell me another joke.", "A joke, please."),
    ),
}

NAMES = words(
    """
    Adam Alice Amir Anna Anton Bella Ben Boris Carla Carlos Chen Clara Daniel Daria David Diego Elena Emma Erik Fatima Felix Finn Gina
    Grace Hana Hassan Helen Hugo Ines Ivan Jack James Jana Jonas Julia Kai Karim Kate Kenji Lara Leo Lena Liam Linda Lucas Luna Maria
    Marco Maya Mia Milo Mona Nadia Nina Noah Nora Olga Oliver Omar Oscar Paul Peter Petra Priya Quinn Rania Ravi Rosa Ruben Sam Sara
    Simon Sofia Sven Tara Theo Tina Tom Vera Victor Wanda Yara Yusuf Zara Zoe Alma Bruno Celia Dora Edgar Flora Gustav Hilda Igor Jasmin
    Klaus Lydia Martin Nelly Otto Paula Ralph Stella Tobias Ursula Viola Walter
    """
)
HELD_OUT_NAMES = words(
    """
    Svetlana Thaddeus Esmeralda Wexley Ottoline Bartholomew Anouk Casimir Delphine Florian Gwendolyn Isidore Juniper Lorcan Marguerite
    Percival Rosalind Tiberius Winifred Zebulon
    """
)
ITEMS = words(
    """
    book lamp chair phone bike boat car hat coat cup clock table ring drone guitar piano camera radio tent rope shirt shoes bag box map
    key pen knife mirror basket
    """
)
ADJECTIVES = words("red blue green black white small big old new shiny heavy cheap round wooden golden")
WORDS = words(
    """
    river garden window paper silver winter summer bridge cloud forest island kitchen market mountain music night ocean orange planet
    rabbit school shadow stone street thunder ticket travel valley water yellow apple bread butter candle castle circle coffee copper
    corner cotton dinner dragon engine feather finger flower friend ghost hammer honey insect jacket ladder letter lemon marble meadow
    needle pepper pocket puzzle ribbon rocket salad sailor saddle tiger tunnel velvet violin wagon whistle
    """
)
PLACES = words(
    """
    Hamburg Porto Boston Milan Geneva Kyoto Osaka Lagos Lyon Turin Seville Dresden Leeds Dallas Denver Chicago Toronto Sydney Mumbai
    Krakow Bergen Malaga Utrecht Bruges
    """
)
UNKNOWN_TOPICS = (
    "the sea",
    "love",
    "history",
    "football",
    "physics",
    "music",
    "the moon",
    "computers",
    "the weather",
    "cooking",
    "money",
    "politics",
    "math",
    "dreams",
    "stars",
    "war",
    "art",
    "school",
    "poetry",
    "space",
    "cars",
    "the future",
    "medicine",
    "chess",
)
UNKNOWN = "I do not know that. I am only a tiny demo model."
UNKNOWN_QUESTIONS = (
    "Write a poem about {t}.",
    "Explain {t}.",
    "Tell me about {t}.",
    "Who is the president of {c}?",
    "What is the population of {c}?",
    "Write a story about {t}.",
    "How old is {n}?",
    "Who is {n}?",
    "What do you think about {t}?",
    "What is the weather in {p}?",
    "How far is {p}?",
    "Why is {t} important?",
    "Write code for {t}.",
    "How do I learn {t}?",
    "What time is it?",
    "Who invented {t}?",
    "Translate {w} into French.",
    "When was {p} built?",
    "What is the best {i}?",
    "Where can I buy a {i}?",
    "How many people live in {c}?",
    "What is {t}?",
    "What does {w} mean?",
)
ONSETS = words("b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pl pr sk sl st th tr sh ch qu bl sn sp")
VOWELS = words("a e i o u a e i o u ai ea ee oo ou y")
CODAS = words("n r l s t m k x d p g nd rt st ck sh ng lm b v") + [""] * 14

POLITE = ("Please tell me: ", "Quick question: ", "Can you tell me? ", "I want to know: ", "Hey, ", "One more: ", "Question: ", "So, ")


class World:
    """A seeded source of conversations. The same seed gives the same conversations in the same order."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.facts = facts()
        self.kinds = {kind: [fact for fact in self.facts if fact.kind == kind] for kind in QUESTIONS}
        self.countries = sorted(fact.subject for fact in self.kinds["capital"])
        self.sources: dict[str, tuple[Callable[[], Exchange], int]] = {
            "fact": (self.fact, 30),
            "small talk": (self.small_talk, 7),
            "copy": (self.copy, 22),
            "operation": (self.operation, 8),
            "fill": (self.fill, 8),
            "read": (self.read, 8),
            "format": (self.formatted, 7),
            "unknown": (self.unknown, 6),
        }

    # -- words ---------------------------------------------------------------------------------------------------

    def made_up_word(self) -> str:
        """Random syllables: a word that cannot be known, only copied."""
        count = self.random.choice((1, 2, 2, 2, 3))
        return "".join(self.random.choice(ONSETS) + self.random.choice(VOWELS) + self.random.choice(CODAS) for _ in range(count))

    def name(self) -> str:
        return self.random.choice(NAMES) if self.random.random() < 0.3 else self.made_up_word().capitalize()

    def place(self) -> str:
        roll = self.random.random()
        return self.random.choice(PLACES) if roll < 0.3 else self.made_up_word().capitalize()

    def item(self) -> str:
        roll = self.random.random()
        return self.random.choice(ITEMS) if roll < 0.5 else self.random.choice(WORDS) if roll < 0.75 else self.made_up_word()

    def word(self) -> str:
        roll = self.random.random()
        if roll < 0.2:
            return self.random.choice(WORDS + ITEMS)
        if roll < 0.3:
            return self.random.choice(NAMES + PLACES)
        return self.made_up_word() if roll < 0.65 else self.made_up_word().capitalize()

    # -- one question and its answer -------------------------------------------------------------------------------

    def fact(self) -> Exchange:
        # half by fact, half by kind: else the 77 countries drown the 8 shapes
        fact = self.random.choice(self.facts if self.random.random() < 0.6 else self.kinds[self.random.choice(list(self.kinds))])
        return self.varied(question(fact, self.random.choice(QUESTIONS[fact.kind][0]))), fact.answer

    def varied(self, text: str) -> str:
        """The same question as a hasty or a polite person types it."""
        roll = self.random.random()
        if roll < 0.12:
            return self.random.choice(POLITE) + text
        if roll < 0.2:
            return text[0].lower() + text[1:]
        return text.rstrip("?.") if roll < 0.28 else text

    def small_talk(self) -> Exchange:
        # the identity answer is what a visitor checks first
        answer = IDENTITY if self.random.random() < 0.2 else self.random.choice(list(SMALL_TALK))
        return self.random.choice(SMALL_TALK[answer][0]), answer

    def copy(self) -> Exchange:
        text = " ".join(self.word() for _ in range(self.random.choice((1, 1, 1, 2, 2, 3, 3, 4, 5, 6))))
        verb = self.random.choice(("Repeat: ", "Repeat after me: ", "Say ", "Echo: ", "Copy this: ", "Write ", "Say: ", "Repeat "))
        return verb + text, text

    def operation(self) -> Exchange:
        one, other = self.word(), self.word()
        return self.random.choice(
            (
                (f"Put {one} in quotes.", f'"{one}"'),
                (f"Say {one} twice.", f"{one} {one}"),
                (f"Write {one} as JSON.", f'{{"word": "{one}"}}'),
                (f"Write {one} and {other} as a list.", f'["{one}", "{other}"]'),
                (f"What is the first word of: {one} {other}", one),
                (f"What is the last word of: {one} {other}", other),
                (f"Swap: {one} {other}", f"{other} {one}"),
            )
        )

    def fill(self) -> Exchange:
        name, item, place = self.name(), self.item(), self.place()
        return self.random.choice(
            (
                (f"Write a birthday message for {name}.", f"Happy birthday, {name}! Have a great day."),
                (f"Wish {name} good luck.", f"Good luck, {name}!"),
                (f"Say goodbye to {name}.", f"Goodbye, {name}!"),
                (f"Thank {name} for the {item}.", f"Dear {name}, thank you for the {item}."),
                (f"Invite {name} to {place}.", f"Dear {name}, please come to {place}."),
                (f"Tell {name} that the {item} is in {place}.", f"Dear {name}, the {item} is in {place}."),
                (f"Ask {name} for the {item}.", f"{name}, may I have the {item}?"),
            )
        )

    def read(self) -> Exchange:
        people = self.random.sample([self.name() for _ in range(4)], self.random.choice((1, 2, 2, 3)))
        things = [f"{self.random.choice(ADJECTIVES)} {self.item()}" for _ in people]
        places = [self.place() for _ in people]
        chosen = self.random.randrange(len(people))
        person, thing, place = people[chosen], things[chosen], places[chosen]
        has = " ".join(f"{who} has a {what}." for who, what in zip(people, things, strict=True))
        lives = " ".join(f"{who} lives in {where}." for who, where in zip(people, places, strict=True))
        both = " ".join(f"{who} from {where} has a {what}." for who, where, what in zip(people, places, things, strict=True))
        return self.random.choice(
            (
                (f"{has} What does {person} have?", f"{person} has a {thing}."),
                (f"{lives} Where does {person} live?", f"{person} lives in {place}."),
                (f"{lives} Who lives in {place}?", f"{person} lives in {place}."),
                (f"{both} Where is {person} from?", f"{person} is from {place}."),
                (f"{both} As JSON: where is {person} from?", f'{{"name": "{person}", "from": "{place}"}}'),
            )
        )

    def formatted(self) -> Exchange:
        fact = self.random.choice(self.facts)
        asked = question(fact, self.random.choice(QUESTIONS[fact.kind][0]))
        return self.random.choice(
            (
                (f"{asked} Answer in one word.", fact.value),
                (f"{asked} One word only.", fact.value),
                (f"{asked} Answer as JSON.", f'{{"answer": "{fact.value}"}}'),
                (f"{asked} Answer in quotes.", f'"{fact.value}"'),
            )
        )

    def unknown(self) -> Exchange:
        if self.random.random() < 0.3:
            place = self.made_up_word().capitalize()
            return question(self.kinds["capital"][0], self.random.choice(QUESTIONS["capital"][0]), place), UNKNOWN
        form = self.random.choice(UNKNOWN_QUESTIONS)
        topic = self.random.choice(UNKNOWN_TOPICS) if self.random.random() < 0.6 else self.random.choice(WORDS)
        return form.format(
            t=topic, c=self.random.choice(self.countries), n=self.name(), p=self.place(), w=self.word(), i=self.item()
        ), UNKNOWN

    # -- whole conversations ---------------------------------------------------------------------------------------

    def conversation(self) -> list[Message]:
        """A chat of one to five exchanges; a quarter of them turn on something that the user said before."""
        roll = self.random.random()
        if roll < 0.27:
            chat = self.memory(self.random.choice((0, 0, 1, 1, 2, 2, 3, 4)))
        elif roll < 0.29:
            chat = self.named_by_system()
        else:
            chat = [message for _ in range(self.random.choice((1, 1, 2, 3))) for message in as_messages(self.exchange())]
        if chat[0]["role"] != "system" and self.random.random() < 0.1:
            chat.insert(0, {"role": "system", "content": self.random.choice(SYSTEM_MESSAGES)})
        return chat

    def exchange(self) -> Exchange:
        sources, weights = zip(*self.sources.values(), strict=True)
        return self.random.choices(sources, weights)[0]()

    def between(self) -> Exchange:
        """Small turns, so that a long memory still fits into a training row."""
        return self.random.choice((self.fact, self.fact, self.small_talk, self.copy, self.unknown))()

    def memory(self, turns_between: int) -> list[Message]:
        name, place = self.name(), self.place()
        told = [self.introduction(name)]
        asked = [self.name_question(name)]
        if self.random.random() < 0.3:
            told.append(
                (
                    self.random.choice(("I live in {p}.", "My home is in {p}.", "I am from {p}.")).format(p=place),
                    f"{place} sounds like a nice place.",
                )
            )
            asked.append(
                (self.random.choice(("Where do I live?", "Do you know where I live?", "Where is my home?")), f"You live in {place}.")
            )
        if self.random.random() < 0.12:  # nothing was told, so nothing may be remembered
            told, asked = [], [(self.name_question(name)[0], "I do not know your name yet.")]
        self.random.shuffle(told)
        self.random.shuffle(asked)
        exchanges = told + [self.between() for _ in range(turns_between)] + asked
        if self.random.random() < 0.2:
            exchanges.insert(0, self.between())
        return [message for exchange in exchanges for message in as_messages(exchange)]

    def introduction(self, name: str) -> Exchange:
        told = self.random.choice(
            (
                "My name is {n}.",
                "I am {n}.",
                "Call me {n}.",
                "Hello, my name is {n}.",
                "Hi, I am {n}.",
                "my name is {n}",
                "Hi! My name is {n}.",
                "You can call me {n}.",
                "I'm {n}.",
                "Hello, I'm {n}.",
            )
        )
        return told.format(n=name), f"Nice to meet you, {name}!"

    def name_question(self, name: str) -> Exchange:
        asked = self.random.choice(
            (
                "What is my name?",
                "Do you remember my name?",
                "Who am I?",
                "Tell me my name.",
                "What am I called?",
                "what is my name",
                "Do you know my name?",
            )
        )
        return asked, f"Your name is {name}."

    def named_by_system(self) -> list[Message]:
        name = self.name()
        system = {"role": "system", "content": self.random.choice((f"The user is called {name}.", f"The name of the user is {name}."))}
        return [system, *as_messages(self.exchange()), *as_messages(self.name_question(name))]


SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a tiny demo model.",
    "Answer briefly.",
    "Be polite.",
    "You are a friendly assistant. Answer in one sentence.",
    "Be helpful and honest.",
    "You are a helpful AI assistant.",
    "Answer the question of the user.",
    "Please be kind.",
)


def question(fact: Fact, form: str, subject: str | None = None) -> str:
    text = form.format(s=subject or fact.subject)
    return text[0].upper() + text[1:]


def as_messages(exchange: Exchange) -> list[Message]:
    return [{"role": "user", "content": exchange[0]}, {"role": "assistant", "content": exchange[1]}]
