"""How well texts are told from what stands behind them, as WCAG 2 measures it."""

from __future__ import annotations

from playwright.sync_api import Locator

LEAST = 4.5
"""The least contrast of text that is read well (WCAG 2, level AA)."""
_TEXTS = """(root) => {
    const parts = (color) => {
        const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
        return { rgb: [r, g, b], a };
    };
    const over = (top, bottom) => top.rgb.map((each, i) => each * top.a + bottom[i] * (1 - top.a));
    const behind = (element) => {
        if (!element) return [255, 255, 255];
        const own = parts(getComputedStyle(element).backgroundColor);
        return own.a === 1 ? own.rgb : over(own, behind(element.parentElement));
    };
    const light = (rgb) => {
        const [r, g, b] = rgb.map((each) => each / 255)
            .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = {};
    for (const element of [root, ...root.querySelectorAll("*")]) {
        const own = [...element.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
        const onCell = element.matches("svg text[style]");  // its colour is chosen for the cell
        if (!own || onCell || element.disabled || !element.checkVisibility()) continue;
        const style = getComputedStyle(element), under = behind(element);
        const svg = element.matches("svg *");
        const ink = over(parts(svg ? style.fill : style.color), under);
        const [a, b] = [light(ink), light(under)].sort((x, y) => x - y);
        const name = `${element.tagName}.${element.className.baseVal ?? element.className}`;
        found[name] = Math.min(found[name] ?? 21, (b + 0.05) / (a + 0.05));
    }
    return found;
}"""
_BEHIND = """(root) => getComputedStyle(root).backgroundColor.match(/[\\d.]+/g).map(Number)"""


def contrasts(root: Locator) -> dict[str, float]:
    """The least contrast of each kind of element with text, from 1 to 21."""
    found: dict[str, float] = root.evaluate(_TEXTS)
    assert found
    return found


def hard_to_read(root: Locator) -> dict[str, float]:
    """The elements whose text is told too badly from what stands behind it."""
    return {name: each for name, each in contrasts(root).items() if each < LEAST}


def is_dark(root: Locator) -> bool:
    """Whether an element has a dark background."""
    return max(root.evaluate(_BEHIND)[:3]) < 96
