//! What standard output can show: colour, width, characters.

use std::{env, io::IsTerminal};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use unicode_width::UnicodeWidthStr;

/// What a text is about, which gives its colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// A heading, or what matters most: bold.
    Strong,
    /// As it should be: green.
    Good,
    /// Under way, or to be looked at: yellow.
    Warn,
    /// Broken: red.
    Bad,
    /// Of less interest: dim.
    Dim,
}

impl Tone {
    fn style(self) -> Style {
        let coloured = |color: AnsiColor| Style::new().fg_color(Some(color.into()));
        match self {
            Self::Plain => Style::new(),
            Self::Strong => Style::new().bold(),
            Self::Good => coloured(AnsiColor::Green),
            Self::Warn => coloured(AnsiColor::Yellow),
            Self::Bad => coloured(AnsiColor::Red),
            Self::Dim => Style::new().dimmed(),
        }
    }
}

/// What standard output can show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Screen {
    /// Whether it is a terminal.
    pub terminal: bool,
    /// Whether colour is wanted: on a terminal, unless `NO_COLOR` is set or `TERM` is `dumb`; anywhere with
    /// `CLICOLOR_FORCE`.
    pub colour: bool,
    /// Whether more than ASCII may be printed: the locale is UTF-8.
    pub unicode: bool,
    /// The columns of the terminal; none where there is none.
    pub width: Option<usize>,
    /// The lines of the terminal; none where there is none.
    pub height: Option<usize>,
}

impl Screen {
    /// Returns what standard output can show right now: the size may change.
    pub fn stdout() -> Self {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        let size = terminal.then(|| terminal_size::terminal_size_of(&stdout)).flatten();
        let some = |n: u16| (n > 0).then_some(usize::from(n));
        Self {
            terminal,
            colour: AutoStream::choice(&stdout) != ColorChoice::Never && !(terminal && is_dumb()),
            unicode: is_utf8(|name| env::var(name).ok()),
            width: size.and_then(|(width, _)| some(width.0)),
            height: size.and_then(|(_, height)| some(height.0)),
        }
    }

    /// Returns `text` in the colour of `tone`, where colour is wanted.
    pub fn paint(&self, text: &str, tone: Tone) -> String {
        if !self.colour || tone == Tone::Plain || text.is_empty() {
            return text.to_owned();
        }
        let style = tone.style();
        format!("{style}{text}{style:#}")
    }

    /// Returns `text` with its end cut off where it takes more than `width` columns. Without any escape sequence in it.
    pub fn cut(&self, text: &str, width: usize) -> String {
        if display_width(text) <= width {
            return text.to_owned();
        }
        let mark = if self.unicode { "…" } else { "~" };
        let mut out = String::new();
        let mut room = width.saturating_sub(1);
        for c in text.chars() {
            let columns = display_width(c.encode_utf8(&mut [0; 4]));
            if columns > room {
                break;
            }
            room -= columns;
            out.push(c);
        }
        if width > 0 {
            out.push_str(mark);
        }
        out
    }

    /// Returns `text` cut to what is left of the terminal's width after `taken` columns; whole where there is none.
    pub fn fit(&self, text: &str, taken: usize) -> String {
        match self.width {
            Some(width) => self.cut(text, width.saturating_sub(taken)),
            None => text.to_owned(),
        }
    }

    /// Returns one of two signs: `unicode` where the locale has it.
    pub const fn sign<'a>(&self, unicode: &'a str, ascii: &'a str) -> &'a str {
        if self.unicode { unicode } else { ascii }
    }
}

/// Returns how many columns a text takes on a terminal.
pub fn display_width(text: &str) -> usize {
    text.width()
}

/// Says whether the terminal shows no colours and nobody insists on them; the library takes any terminal under `CI` for one
/// that does.
fn is_dumb() -> bool {
    let insists = env::var_os("CLICOLOR_FORCE").is_some_and(|force| force != "0");
    env::var_os("TERM").is_some_and(|term| term == "dumb") && !insists
}

/// The locale of characters, by the rules of POSIX: the first of these that is set and not empty.
fn is_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| variable(name).filter(|v| !v.is_empty()));
    set.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_by_columns_and_not_by_characters() {
        let screen = Screen { unicode: true, ..Screen::default() };
        assert_eq!(screen.cut("web", 3), "web");
        assert_eq!(screen.cut("website", 4), "web…");
        assert_eq!(screen.cut("データベース", 5), "デー…");
        assert_eq!(screen.cut("website", 0), "");
        assert_eq!(Screen::default().cut("website", 4), "web~");
    }

    #[test]
    fn without_colour_a_text_stays_as_it_is() {
        assert_eq!(Screen::default().paint("Failed", Tone::Bad), "Failed");
        let screen = Screen { colour: true, ..Screen::default() };
        assert_eq!(screen.paint("Failed", Tone::Bad), "\u{1b}[31mFailed\u{1b}[0m");
        assert_eq!(screen.paint("Failed", Tone::Plain), "Failed");
    }

    #[test]
    fn the_locale_says_whether_more_than_ascii_is_printed() {
        let of = |pairs: &'static [(&str, &str)]| {
            is_utf8(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert!(of(&[("LANG", "en_US.UTF-8")]));
        assert!(of(&[("LC_ALL", ""), ("LANG", "C.utf8")]));
        assert!(!of(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]));
        assert!(!of(&[]));
    }
}
