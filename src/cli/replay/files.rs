//! Reading capture files: `.jsonl` line by line, bare `.json` bodies, folders of either, stdin. Nothing is
//! held in memory but the callback that is being read, and a bad line costs no other.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::meta::capture::{Capture, CaptureError, is_capture};

/// A body has up to 4 MiB; every byte of it may be escaped.
const LONGEST_LINE: usize = 32 * 1024 * 1024;
/// Captures that are read ahead, and what they and those under way may take in memory, in KiB.
const AHEAD: usize = 64;
const MEMORY_KIB: usize = 64 * 1024;
/// Blank lines at the start of a file that may be one bare callback.
const BLANK_LINES: usize = 1000;

/// A capture and where it stands.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) place: Place,
    pub(super) capture: Capture,
    /// The bytes it took in the file.
    pub(super) size: u64,
    /// Its share of the memory.
    pub(super) held: OwnedSemaphorePermit,
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
            total += files(path)
                .ok()?
                .iter()
                .filter_map(|file| Some(fs::metadata(file).ok()?.len()))
                .sum::<u64>();
        }
        (total > 0).then_some(total)
    }

    /// Reads all captures, in the order of the arguments and of the names in a folder, on a thread of its own.
    pub(super) fn read(self) -> Receiver<Result<Located, Bad>> {
        let (sender, receiver) = channel(AHEAD);
        let out = Out {
            sender,
            memory: Arc::new(Semaphore::new(MEMORY_KIB)),
            runtime: Handle::current(),
        };
        std::thread::spawn(move || {
            self.0
                .iter()
                .try_for_each(|path| read_path(path, &out))
                .is_ok()
        });
        receiver
    }
}

/// Nobody listens any more.
struct Gone;
type Sent = Result<(), Gone>;

/// Where captures go, as fast as they are taken.
struct Out {
    sender: Sender<Result<Located, Bad>>,
    memory: Arc<Semaphore>,
    runtime: Handle,
}

impl Out {
    fn bad(&self, bad: Bad) -> Sent {
        self.sender.blocking_send(Err(bad)).map_err(|_| Gone)
    }

    fn capture(&self, place: Place, size: usize, capture: Capture) -> Sent {
        let kib = u32::try_from(size.div_ceil(1024))
            .unwrap_or(u32::MAX)
            .min(MEMORY_KIB as u32);
        let held = self
            .runtime
            .block_on(Arc::clone(&self.memory).acquire_many_owned(kib))
            .map_err(|_| Gone)?;
        self.sender
            .blocking_send(Ok(Located {
                place,
                capture,
                size: size as u64,
                held,
            }))
            .map_err(|_| Gone)
    }
}

fn read_path(path: &Path, to: &Out) -> Sent {
    if path.as_os_str() == "-" {
        return Lines::new("stdin", io::stdin().lock()).send_all(false, to);
    }
    match files(path) {
        Ok(files) if files.is_empty() => to.bad(Bad::EmptyFolder(path.to_owned())),
        Ok(files) => files.iter().try_for_each(|file| match File::open(file) {
            Ok(open) => Lines::new(&file.display().to_string(), BufReader::new(open))
                .send_all(has_lines(file), to),
            Err(error) => to.bad(Bad::File(file.clone(), error)),
        }),
        Err(error) => to.bad(Bad::File(path.to_owned(), error)),
    }
}

fn has_lines(file: &Path) -> bool {
    file.extension()
        .is_some_and(|extension| extension == "jsonl")
}

/// The files behind an argument: itself, or those below a folder, by name.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(path)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    entries.sort();
    let mut found = Vec::new();
    for entry in entries {
        // What a link leads to is not below this folder, and may lead back to it.
        if fs::symlink_metadata(&entry)?.is_dir() {
            found.extend(files(&entry)?);
        } else if has_lines(&entry)
            || entry
                .extension()
                .is_some_and(|extension| extension == "json")
        {
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
        Self {
            file: file.into(),
            reader,
            ahead: VecDeque::new(),
            number: 0,
        }
    }

    fn place(&self, line: usize) -> Place {
        Place {
            file: Arc::clone(&self.file),
            line,
        }
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
        self.reader
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut line)?;
        if line.len() > LONGEST_LINE {
            self.reader.skip_until(b'\n')?;
            return Ok(Some(Err(TooLong)));
        }
        Ok((!line.is_empty()).then_some(Ok(line)))
    }

    fn send_all(mut self, has_lines: bool, to: &Out) -> Sent {
        let file = PathBuf::from(&*self.file);
        match self.try_send_all(has_lines, to) {
            Ok(sent) => sent,
            Err(error) => to.bad(Bad::File(file, error)),
        }
    }

    fn try_send_all(&mut self, has_lines: bool, to: &Out) -> io::Result<Sent> {
        if !has_lines && !self.starts_with_lines()? {
            let mut whole: Vec<u8> = self.ahead.drain(..).flatten().flatten().collect();
            let limit = (LONGEST_LINE - whole.len().min(LONGEST_LINE)) as u64;
            self.reader
                .by_ref()
                .take(limit + 1)
                .read_to_end(&mut whole)?;
            return Ok(match whole.trim_ascii() {
                _ if whole.len() > LONGEST_LINE => to.bad(Bad::TooLong(self.place(1))),
                b"" => to.bad(Bad::EmptyFile(Arc::clone(&self.file))),
                _ => self.send(to, 1, whole.len(), Capture::from_line(&whole)),
            });
        }
        let mut empty = true;
        while let Some(line) = self.next()? {
            let sent = match line {
                Ok(line) if line.trim_ascii().is_empty() => continue,
                Ok(line) => {
                    let text = line.strip_suffix(b"\n").unwrap_or(&line);
                    let text = text.strip_suffix(b"\r").unwrap_or(text);
                    self.send(to, self.number, line.len(), Capture::from_line(text))
                }
                Err(TooLong) => to.bad(Bad::TooLong(self.place(self.number))),
            };
            if sent.is_err() {
                return Ok(sent);
            }
            empty = false;
        }
        Ok(if empty {
            to.bad(Bad::EmptyFile(Arc::clone(&self.file)))
        } else {
            Ok(())
        })
    }

    fn send(
        &self,
        to: &Out,
        line: usize,
        size: usize,
        capture: Result<Capture, CaptureError>,
    ) -> Sent {
        match capture {
            Ok(capture) => to.capture(self.place(line), size, capture),
            Err(error) => to.bad(Bad::Line(self.place(line + error.line() - 1), error)),
        }
    }

    /// Whether the first line that says something is a capture, or one callback of several.
    fn starts_with_lines(&mut self) -> io::Result<bool> {
        let mut first_is_callback = false;
        while let Some(line) = self.read_line()? {
            let (is_capture, is_callback, is_blank) = match &line {
                Ok(text) => (
                    is_capture(text),
                    Capture::from_bare(text).is_ok(),
                    text.trim_ascii().is_empty(),
                ),
                Err(TooLong) => (true, false, false),
            };
            self.ahead.push_back(line);
            match (is_blank, first_is_callback) {
                (true, _) if self.ahead.len() > BLANK_LINES => return Ok(true),
                (true, _) => {}
                (false, true) => return Ok(true),
                (false, false) if is_callback => first_is_callback = true,
                (false, false) => return Ok(is_capture),
            }
        }
        Ok(false)
    }
}
