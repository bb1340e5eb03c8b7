//! Reading capture files: `.jsonl` line by line, bare `.json` bodies, folders of either, stdin. Nothing is
//! held in memory but the callback that is being read, and a bad line costs no other.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::meta::capture::{Capture, CaptureError, is_capture};

/// A body has up to 4 MiB; every byte of it may be escaped.
const LONGEST_LINE: usize = 32 * 1024 * 1024;
/// Captures that are read ahead.
const AHEAD: usize = 64;

/// A capture and where it stands.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) place: Place,
    pub(super) capture: Capture,
    /// The bytes it took in the file.
    pub(super) size: u64,
}

/// A line of a file.
#[derive(Debug, Clone)]
pub(super) struct Place {
    file: Arc<str>,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What cannot be replayed, and where it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum Bad {
    #[error("{0}: {1}")]
    Line(Place, CaptureError),
    #[error("{0}: a line of more than 32 MiB")]
    TooLong(Place),
    #[error("{path}: {1}", path = .0.display())]
    File(PathBuf, io::Error),
    #[error("{path}: holds no .json or .jsonl file", path = .0.display())]
    EmptyFolder(PathBuf),
    #[error("{0}: empty")]
    EmptyFile(Arc<str>),
}

/// What to read: files, folders, and `-` for stdin.
pub(super) struct Files(Vec<PathBuf>);

impl Files {
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        Self(paths)
    }

    /// How many bytes there are to read, where that can be known.
    pub(super) fn total_size(&self) -> Option<u64> {
        let mut total = 0;
        for path in &self.0 {
            if path.as_os_str() == "-" {
                return None;
            }
            total += files(path).ok()?.iter().filter_map(|file| Some(fs::metadata(file).ok()?.len())).sum::<u64>();
        }
        (total > 0).then_some(total)
    }

    /// Reads all captures, in the order of the arguments and of the names in a folder, on a thread of its own.
    pub(super) fn read(self) -> Receiver<Result<Located, Bad>> {
        let (sender, receiver) = channel(AHEAD);
        std::thread::spawn(move || self.0.iter().try_for_each(|path| read_path(path, &sender)).is_ok());
        receiver
    }
}

/// Nobody listens any more.
struct Gone;
type Sent = Result<(), Gone>;

fn send(to: &Sender<Result<Located, Bad>>, found: Result<Located, Bad>) -> Sent {
    to.blocking_send(found).map_err(|_| Gone)
}

fn read_path(path: &Path, to: &Sender<Result<Located, Bad>>) -> Sent {
    if path.as_os_str() == "-" {
        return Lines::new("stdin", io::stdin().lock()).send_all(false, to);
    }
    match files(path) {
        Ok(files) if files.is_empty() => send(to, Err(Bad::EmptyFolder(path.to_owned()))),
        Ok(files) => files.iter().try_for_each(|file| match File::open(file) {
            Ok(open) => Lines::new(&file.display().to_string(), BufReader::new(open)).send_all(has_lines(file), to),
            Err(error) => send(to, Err(Bad::File(file.clone(), error))),
        }),
        Err(error) => send(to, Err(Bad::File(path.to_owned(), error))),
    }
}

fn has_lines(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "jsonl")
}

/// The files behind an argument: itself, or those below a folder, by name.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries: Vec<PathBuf> =
        fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        // What a link leads to is not below this folder, and may lead back to it.
        if fs::symlink_metadata(&entry)?.is_dir() {
            found.extend(files(&entry)?);
        } else if has_lines(&entry) || entry.extension().is_some_and(|extension| extension == "json") {
            found.push(entry);
        }
    }
    Ok(found)
}

/// A file's lines, ends included.
struct Lines<R> {
    file: Arc<str>,
    reader: R,
    /// Read, and not handed out yet.
    ahead: VecDeque<Line>,
    /// The line that was handed out last.
    number: usize,
}

/// A line, its end included, unless it is longer than it may be.
type Line = Result<Vec<u8>, TooLong>;
struct TooLong;

impl<R: BufRead> Lines<R> {
    fn new(file: &str, reader: R) -> Self {
        Self { file: file.into(), reader, ahead: VecDeque::new(), number: 0 }
    }

    fn place(&self, line: usize) -> Place {
        Place { file: Arc::clone(&self.file), line }
    }

    fn next(&mut self) -> io::Result<Option<Line>> {
        self.number += 1;
        if let Some(line) = self.ahead.pop_front() {
            return Ok(Some(line));
        }
        self.read_line()
    }

    fn read_line(&mut self) -> io::Result<Option<Line>> {
        let mut line = Vec::new();
        let limit = LONGEST_LINE as u64 + 1;
        self.reader.by_ref().take(limit).read_until(b'\n', &mut line)?;
        if line.len() > LONGEST_LINE {
            self.reader.skip_until(b'\n')?;
            return Ok(Some(Err(TooLong)));
        }
        Ok((!line.is_empty()).then_some(Ok(line)))
    }

    fn send_all(mut self, has_lines: bool, to: &Sender<Result<Located, Bad>>) -> Sent {
        let file = PathBuf::from(&*self.file);
        match self.try_send_all(has_lines, to) {
            Ok(sent) => sent,
            Err(error) => send(to, Err(Bad::File(file, error))),
        }
    }

    fn try_send_all(&mut self, has_lines: bool, to: &Sender<Result<Located, Bad>>) -> io::Result<Sent> {
        if !has_lines && !self.starts_with_lines()? {
            let mut whole: Vec<u8> = self.ahead.drain(..).flatten().flatten().collect();
            let limit = (LONGEST_LINE - whole.len().min(LONGEST_LINE)) as u64;
            self.reader.by_ref().take(limit + 1).read_to_end(&mut whole)?;
            if whole.len() > LONGEST_LINE {
                return Ok(send(to, Err(Bad::TooLong(self.place(1)))));
            }
            if whole.trim_ascii().is_empty() {
                return Ok(send(to, Err(Bad::EmptyFile(Arc::clone(&self.file)))));
            }
            return Ok(send(to, self.located(1, whole.len(), Capture::from_line(&whole))));
        }
        let mut empty = true;
        while let Some(line) = self.next()? {
            let found = match line {
                Ok(line) if line.trim_ascii().is_empty() => continue,
                Ok(line) => {
                    let text = line.strip_suffix(b"\n").unwrap_or(&line);
                    let text = text.strip_suffix(b"\r").unwrap_or(text);
                    self.located(self.number, line.len(), Capture::from_line(text))
                }
                Err(TooLong) => Err(Bad::TooLong(self.place(self.number))),
            };
            empty = false;
            if send(to, found).is_err() {
                return Ok(Err(Gone));
            }
        }
        Ok(if empty { send(to, Err(Bad::EmptyFile(Arc::clone(&self.file)))) } else { Ok(()) })
    }

    /// Whether the first line that says something is a capture, or one callback of several.
    fn starts_with_lines(&mut self) -> io::Result<bool> {
        let mut first_is_callback = false;
        while let Some(line) = self.read_line()? {
            let (is_capture, is_callback, is_blank) = match &line {
                Ok(text) => (is_capture(text), Capture::from_bare(text).is_ok(), text.trim_ascii().is_empty()),
                Err(TooLong) => (true, false, false),
            };
            self.ahead.push_back(line);
            match (is_blank, first_is_callback) {
                (true, _) => {}
                (false, true) => return Ok(true),
                (false, false) if is_callback => first_is_callback = true,
                (false, false) => return Ok(is_capture),
            }
        }
        Ok(false)
    }

    fn located(&self, line: usize, size: usize, capture: Result<Capture, CaptureError>) -> Result<Located, Bad> {
        match capture {
            Ok(capture) => Ok(Located { place: self.place(line), capture, size: size as u64 }),
            Err(error) => Err(Bad::Line(self.place(line + error.line().saturating_sub(1)), error)),
        }
    }
}
