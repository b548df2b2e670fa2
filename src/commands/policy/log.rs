//! Audit logs line by line, in the order of time, each line within bounds.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use anyhow::{Context, bail};
use flate2::bufread::MultiGzDecoder;
use jiff::Timestamp;

use super::documents::{is_stdin, shown};
use crate::core::{message::plain, replay::Event};

/// The longest line that is read: an event holds two objects of at most 3 MiB each.
const LONGEST: u64 = 16 << 20;

/// How much is read at once.
const BUFFER: usize = 256 << 10;

/// What a gzip file begins with.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Several logs as one.
pub(super) struct Log {
    sources: Vec<Source>,
    /// The one whose line was handed out.
    last: Option<usize>,
}

/// A line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// As it is in the file, without its end.
    Text(&'a [u8]),
    /// Why there is none.
    Unreadable(&'a str),
}

/// Where a line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The file.
    pub file: std::rc::Rc<str>,
    /// The line, from 1.
    pub line: u64,
}

impl Log {
    /// Opens logs.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn open(paths: &[impl AsRef<Path>]) -> anyhow::Result<Self> {
        let sources =
            paths.iter().map(|path| Source::open(path.as_ref())).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self::of(sources))
    }

    fn of(mut sources: Vec<Source>) -> Self {
        // Of one alone nobody asks for its times.
        let several = sources.len() > 1;
        for source in &mut sources {
            source.timed = several;
            source.advance();
        }
        Self { sources, last: None }
    }

    /// Returns the next line that is not empty, and where it is: of all logs the one that was written first.
    pub fn next(&mut self) -> Option<(Line<'_>, Place)> {
        if let Some(source) = self.last.take().and_then(|last| self.sources.get_mut(last)) {
            source.advance();
        }
        let there = self.sources.iter().enumerate().filter(|(_, source)| source.head != Head::End);
        let (first, _) = there.min_by_key(|(_, source)| source.time)?;
        self.last = Some(first);
        let source = self.sources.get(first)?;
        let line = match &source.head {
            Head::Text => Line::Text(&source.buffer),
            Head::Unreadable(why) => Line::Unreadable(why),
            Head::End => return None,
        };
        Some((line, Place { file: source.name.clone(), line: source.line }))
    }
}

/// The line of a log that comes next.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    Text,
    Unreadable(String),
    End,
}

struct Source {
    name: std::rc::Rc<str>,
    reader: Box<dyn BufRead>,
    buffer: Vec<u8>,
    line: u64,
    head: Head,
    /// Of the last line that had one.
    time: Timestamp,
    timed: bool,
    ended: bool,
}

impl Source {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = shown(path);
        if is_stdin(path) {
            return Self::of(&shown, BufReader::with_capacity(BUFFER, std::io::stdin()));
        }
        let file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            bail!("cannot read {shown}: it is a directory");
        }
        Self::of(&shown, BufReader::with_capacity(BUFFER, file))
    }

    fn of(name: &str, mut reader: impl BufRead + 'static) -> anyhow::Result<Self> {
        let start = reader.fill_buf().with_context(|| format!("cannot read {name}"))?;
        let reader: Box<dyn BufRead> = if start.starts_with(&GZIP) {
            Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(reader)))
        } else {
            Box::new(reader)
        };
        Ok(Self {
            name: plain(name, 200).into(),
            reader,
            buffer: Vec::new(),
            line: 0,
            head: Head::End,
            time: Timestamp::MIN,
            timed: false,
            ended: false,
        })
    }

    /// Goes on to the next line that is not empty.
    fn advance(&mut self) {
        self.head = loop {
            if self.ended {
                break Head::End;
            }
            match self.read() {
                Ok(Head::Text) if self.buffer.is_empty() => {}
                Ok(head) => break head,
                Err(error) => {
                    self.ended = true;
                    break Head::Unreadable(format!("cannot be read on: {error}"));
                }
            }
        };
        if self.timed
            && self.head == Head::Text
            && let Ok(event) = Event::parse(&self.buffer)
        {
            self.time = self.time.max(event.finished());
        }
    }

    /// Reads a line into the buffer.
    fn read(&mut self) -> std::io::Result<Head> {
        self.buffer.clear();
        self.line += 1;
        let read = self.reader.by_ref().take(LONGEST).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(Head::End);
        }
        if self.buffer.last() != Some(&b'\n') && read as u64 == LONGEST {
            self.skip_line()?;
            return Ok(Head::Unreadable(format!("longer than {} MiB", LONGEST >> 20)));
        }
        while self.buffer.last().is_some_and(u8::is_ascii_whitespace) {
            self.buffer.pop();
        }
        Ok(Head::Text)
    }

    fn skip_line(&mut self) -> std::io::Result<()> {
        self.buffer = Vec::new();
        self.reader.skip_until(b'\n').map(|_| ())
    }
}
