"""How the page looks: slate neutrals and one teal accent over gradio's base theme, light and dark, system fonts only.

What a theme variable can't express is in static/studio.css.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.settings import STATIC

SYSTEM_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "sans-serif")
MONO_FONT = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")


def launch_options() -> dict[str, Any]:
    """Keyword arguments for `gr.mount_gradio_app`, which is where gradio 6 takes theme, css and head."""
    script = (STATIC / "studio.js").read_text(encoding="utf-8")
    return {
        "theme": theme(),
        "css": (STATIC / "studio.css").read_text(encoding="utf-8"),
        "head": f"<script>{script}</script>",
        "favicon_path": str(STATIC / "icons" / "favicon.svg"),
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "show_error": False,
    }


def theme() -> gr.themes.Base:
    """On light ground the accent is a shade darker than #0d9488, so that its contrast stays above 4.5."""
    base = gr.themes.Base(
        primary_hue="teal",
        secondary_hue="indigo",
        neutral_hue="slate",
        radius_size=gr.themes.Size(name="studio", xxs="2px", xs="3px", sm="4px", md="6px", lg="8px", xl="8px", xxl="8px"),
        font=SYSTEM_FONT,
        font_mono=MONO_FONT,
    )
    return base.set(
        body_background_fill="#f8fafc",
        body_background_fill_dark="#0f1419",
        body_text_color="#1e293b",
        body_text_color_dark="#e2e8f0",
        body_text_color_subdued="#526077",
        body_text_color_subdued_dark="#9aa8bb",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#171d24",
        background_fill_secondary="#f1f5f9",
        background_fill_secondary_dark="#1e262f",
        border_color_primary="#dbe2ea",
        border_color_primary_dark="#2b3641",
        color_accent="#0f766e",
        color_accent_soft_dark="#123a3a",
        link_text_color="#0f766e",
        link_text_color_dark="#2dd4bf",
        block_background_fill="#ffffff",
        block_background_fill_dark="#171d24",
        block_border_color="#dbe2ea",
        block_border_color_dark="#2b3641",
        block_border_width="1px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="#334155",
        block_label_text_color_dark="#cbd5e1",
        block_title_text_color="#1e293b",
        block_title_text_color_dark="#e2e8f0",
        block_title_text_weight="600",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_padding="0",
        block_info_text_color="#526077",
        block_info_text_color_dark="#9aa8bb",
        input_background_fill="#ffffff",
        input_background_fill_dark="#10161c",
        input_border_color="#8795a8",
        input_border_color_dark="#56657a",
        input_border_color_focus="#0d9488",
        input_border_color_focus_dark="#14b8a6",
        input_border_width="1px",
        input_placeholder_color="#64748b",
        input_placeholder_color_dark="#8494a8",
        input_shadow_focus="0 0 0 2px #0d948855",
        checkbox_border_color="#8795a8",
        checkbox_border_color_dark="#6b7b90",
        checkbox_background_color_selected="#0f766e",
        checkbox_background_color_selected_dark="#0d9488",
        checkbox_border_color_selected="#0f766e",
        checkbox_label_background_fill="#ffffff",
        checkbox_label_background_fill_dark="#10161c",
        checkbox_label_background_fill_selected="#e6f6f4",
        checkbox_label_background_fill_selected_dark="#123a3a",
        checkbox_label_border_width="1px",
        checkbox_label_text_color_selected="#1e293b",
        checkbox_label_text_color_selected_dark="#e2e8f0",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#14b8a6",
        button_primary_background_fill_hover_dark="#2dd4bf",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#06201d",
        button_primary_border_color="#0f766e",
        button_primary_border_color_dark="#14b8a6",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#f1f5f9",
        button_secondary_background_fill_dark="#1e262f",
        button_secondary_background_fill_hover_dark="#27313c",
        button_secondary_border_color="#b6c2d0",
        button_secondary_border_color_dark="#435063",
        button_secondary_text_color="#1e293b",
        button_secondary_text_color_dark="#e2e8f0",
        button_cancel_background_fill="#ffffff",
        button_cancel_background_fill_hover="#fef2f2",
        button_cancel_background_fill_dark="#1e262f",
        button_cancel_background_fill_hover_dark="#3b1d20",
        button_cancel_border_color="#dc2626",
        button_cancel_border_color_dark="#f87171",
        button_cancel_text_color="#b91c1c",
        button_cancel_text_color_dark="#fca5a5",
        button_border_width="1px",
        button_large_text_weight="600",
        button_large_text_size="*text_md",
        button_large_padding="9px 16px",
        button_large_radius="8px",
        button_small_radius="6px",
        slider_color="#0d9488",
        loader_color="#0d9488",
        layout_gap="14px",
        table_radius="8px",
        shadow_drop="none",
        shadow_drop_lg="none",
    )
