"""The tabs of the page, one entry each: a tab that is not listed here is not there."""

from __future__ import annotations

from studio.ui import links
from studio.ui.chat import ChatTab
from studio.ui.compare import CompareTab
from studio.ui.compress import CompressTab
from studio.ui.data import DataTab
from studio.ui.jobs import JobsTab
from studio.ui.models import ModelsTab
from studio.ui.page import TabEntry
from studio.ui.start import StartTab
from studio.ui.train import TrainTab

# in the order of the loop, which is the order on the page; the first is shown where the URL names none
TABS = (
    TabEntry("start", "Start", "What is this, and does it work here?", StartTab, (links.demo_to_chat,)),
    TabEntry(
        "data",
        "Data",
        "Can I trust my rows?",
        DataTab,
        (links.rows_to_train, links.learned_to_train, links.demo_rows),
    ),
    TabEntry("train", "Train", "What will I get, and will it fit?", TrainTab),
    TabEntry(
        "jobs",
        "Jobs",
        "How is it going?",
        JobsTab,
        (links.adapter_to_chat, links.adapter_to_compare, links.job_to_train),
    ),
    TabEntry("chat", "Chat", "Is it any good?", ChatTab, (links.conversation_to_compare, links.sharing_in_chat)),
    TabEntry(
        "compress",
        "Compress",
        "What can I cut without losing the answer?",
        CompressTab,
        (links.prompt_to_chat,),
    ),
    TabEntry(
        "compare",
        "Compare",
        "Which is better, and how sure are we?",
        CompareTab,
        (links.preferences_to_train,),
    ),
    TabEntry("models", "Models", "What do I have?", ModelsTab, (links.model_to_chat,)),
)
