//! The page in a real browser: what people see and do there.

mod live;
mod made_up;

use std::path::PathBuf;

use crate::harness::browser::{Browser, DESK, PHONE, View};

/// Returns `[text, ratio]` of every text whose contrast with what is behind it is below what WCAG asks for (AA).
const TOO_FAINT: &str = r#"(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parts = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const linear = [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parts(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const faint = [];
  const known = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest("script, noscript")) continue;
    const [front, back] = [getComputedStyle(element).color, behind(element)];
    const key = `${front} ${back}`;
    if (!known.has(key)) {
      const [a, b] = [light(parts(front)), light(back)].sort((x, y) => y - x);
      known.set(key, (a + 0.05) / (b + 0.05));
    }
    if (known.get(key) < 4.5) faint.push([text, known.get(key)]);
  }
  return faint;
})()"#;

/// Says that nothing is wider than the screen, and every text can be read, light and dark.
#[track_caller]
fn is_readable(browser: &mut Browser) {
    for size in [DESK, PHONE, View { width: 768, ..DESK }, View { width: 320, height: 500, dark: false }] {
        let mut grounds = Vec::new();
        for dark in [false, true] {
            let view = View { dark, ..size };
            browser.look(view);
            let width = browser.eval("document.scrollingElement.scrollWidth");
            assert!(width.as_u64() <= Some(view.width.into()), "{view:?}: {width} wide");
            let faint = browser.eval(TOO_FAINT);
            assert_eq!(faint.as_array().map(Vec::len), Some(0), "{view:?}: too faint: {faint}");
            grounds.push(browser.eval("getComputedStyle(document.body).backgroundColor"));
        }
        assert_ne!(grounds[0], grounds[1], "dark is another than light");
    }
    browser.look(DESK);
}

/// Says that whatever can be used has a name, and the tables are tables, for those who do not see them.
#[track_caller]
fn is_accessible(browser: &mut Browser) {
    for view in [DESK, PHONE] {
        browser.look(view);
        let nodes = browser.accessible();
        let used = ["button", "link", "searchbox", "textbox", "DisclosureTriangle", "table", "rowheader"];
        for (role, name) in &nodes {
            let role = role.as_str();
            assert!(!used.contains(&role) || !name.trim().is_empty(), "a {role} without a name");
        }
        let count = |wanted: &str| nodes.iter().filter(|(role, _)| role == wanted).count();
        assert!(count("table") >= 1 && count("rowheader") >= 1 && count("cell") >= 1, "{view:?}: {nodes:?}");
        assert!(nodes.iter().any(|(role, _)| role == "status"), "nobody is told of news");
        assert!(nodes.iter().any(|(role, _)| role == "main"), "no main");
        assert!(nodes.contains(&("heading".to_owned(), "rollout-guard".to_owned())), "{nodes:?}");
    }
    browser.look(DESK);
}

/// Goes through the whole page by Tab, from the top. Returns what was reached, and says that nothing was left out and that
/// where one is can be seen.
#[track_caller]
fn tabs_through(browser: &mut Browser) -> Vec<String> {
    const REACHED: &str = r#"(() => {
      const at = document.activeElement;
      if (!at || at === document.body) return null;
      const style = getComputedStyle(at);
      at.dataset.reached = "yes";
      return [at.tagName, at.id || at.textContent.trim().slice(0, 60), style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
    })()"#;
    const LEFT_OUT: &str = r#"[...document.querySelectorAll("a[href], button, input, summary")]
      .filter((e) => e.checkVisibility() && !e.dataset.reached).map((e) => e.outerHTML)"#;
    // From the top: where the focus was last is where Tab would go on from.
    browser.eval(
        "document.activeElement?.blur(); window.getSelection().removeAllRanges(); scrollTo(0, 0); \
         document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')",
    );
    let mut reached = Vec::new();
    for _ in 0..3000 {
        browser.press("Tab");
        let at = browser.eval(REACHED);
        let Some(tag) = at[0].as_str() else { break };
        assert_eq!(at[2], true, "it is not to be seen where one is: {at}");
        reached.push(format!("{tag} {}", at[1].as_str().unwrap_or_default()));
    }
    let left_out = browser.eval(LEFT_OUT);
    assert_eq!(left_out.as_array().map(Vec::len), Some(0), "not reached by Tab: {left_out}");
    assert!(reached.first().is_some_and(|first| first.starts_with("A Skip")), "{reached:?}");
    reached
}

/// Where the pictures of the documentation are, or with `UPDATE_PICTURE` not set where those of a run go.
fn pictures() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let update = std::env::var("UPDATE_PICTURE").is_ok_and(|update| update == "1");
    if update { root.join("docs/images") } else { root.join("target/kind/pictures") }
}

/// Takes the pictures: of a desk, light and dark, and of a phone.
#[track_caller]
fn take_pictures(browser: &mut Browser) {
    for (name, view) in [
        ("page.png", View { width: 1120, height: 860, dark: false }),
        ("page-dark.png", View { width: 1120, height: 860, dark: true }),
        ("page-phone.png", PHONE),
    ] {
        browser.look(view);
        browser.eval("scrollTo(0, 0); new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))");
        let path = pictures().join(name);
        browser.picture_to(&path);
        let size = std::fs::metadata(&path).expect("written").len();
        assert!((5_000..200_000).contains(&size), "{}: {size} bytes", path.display());
    }
    browser.look(DESK);
}
