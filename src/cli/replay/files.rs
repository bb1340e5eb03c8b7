//! Reads capture files: `.jsonl` line by line, bare `.json` bodies, folders of both, and stdin.
//! Memory holds only a bounded number of captures, and a line that cannot be read does not affect
//! the others.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::meta::capture::{Capture, CaptureError, has_capture_fields};

/// The longest line. A body has up to 4 MiB, and every byte of it may be escaped.
const LINE_LIMIT_BYTES: usize = 32 * 1024 * 1024;
/// Captures that are read ahead.
const READ_AHEAD_LIMIT: usize = 64;
/// Memory for captures that are read ahead or in flight, in KiB.
const MEMORY_LIMIT_KIB: usize = 64 * 1024;
/// Blank lines at the start of a file that can be one bare callback.
const BLANK_LINES_LIMIT: usize = 1000;

/// A capture, and its place in the files.
#[derive(Debug)]
pub(super) struct LocatedCapture {
    pub(super) location: Location,
    pub(super) capture: Capture,
    /// The bytes that it takes in the file.
    pub(super) size: u64,
    /// Its share of the memory.
    pub(super) memory: OwnedSemaphorePermit,
}

/// A line of a file.
#[derive(Debug, Clone)]
pub(super) struct Location {
    file: Arc<str>,
    line: usize,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A file, or a part of it, that cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{0}: {1}")]
    NotACapture(Location, CaptureError),
    #[error("{0}: longer than 32 MiB")]
    TooLong(Location),
    #[error("{path}: {1}", path = .0.display())]
    UnreadableFile(PathBuf, io::Error),
    #[error("{path}: holds no .json or .jsonl file", path = .0.display())]
    EmptyFolder(PathBuf),
    #[error("{0}: empty")]
    EmptyFile(Arc<str>),
}

/// The captures of some files and folders; `-` is stdin.
pub(super) struct CaptureFiles(Vec<PathBuf>);

impl CaptureFiles {
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        Self(paths)
    }

    /// Returns the size of all files in bytes, if it is known before they are read.
    pub(super) fn total_size(&self) -> Option<u64> {
        let mut total = 0;
        for path in &self.0 {
            if path.as_os_str() == "-" {
                return None;
            }
            for file in list_files(path).ok()? {
                total += fs::metadata(file).map_or(0, |metadata| metadata.len());
            }
        }
        (total > 0).then_some(total)
    }

    /// Starts a thread that reads all captures, in the order of the arguments, and in a folder in
    /// the order of the names.
    pub(super) fn spawn_reader(self) -> Receiver<Result<LocatedCapture, ReadError>> {
        let (queue, receiver) = channel(READ_AHEAD_LIMIT);
        let sender = CaptureSender {
            queue,
            memory: Arc::new(Semaphore::new(MEMORY_LIMIT_KIB)),
            runtime: Handle::current(),
        };
        thread::spawn(move || {
            // An error only means that the replay has ended, and needs no more captures.
            let _ = self.0.iter().try_for_each(|path| read_path(path, &sender));
        });
        receiver
    }
}

/// The receiver has ended: there is no need to read on.
struct Disconnected;
type SendResult = Result<(), Disconnected>;

/// Hands captures to the replay. Waits while the memory is used up.
struct CaptureSender {
    queue: Sender<Result<LocatedCapture, ReadError>>,
    memory: Arc<Semaphore>,
    runtime: Handle,
}

impl CaptureSender {
    fn send_error(&self, error: ReadError) -> SendResult {
        self.queue
            .blocking_send(Err(error))
            .map_err(|_| Disconnected)
    }

    fn send_capture(&self, location: Location, size: usize, capture: Capture) -> SendResult {
        // The semaphore never grants more permits than it has.
        let kib = size.div_ceil(1024).min(MEMORY_LIMIT_KIB) as u32;
        let permit = Arc::clone(&self.memory).acquire_many_owned(kib);
        let memory = self.runtime.block_on(permit).map_err(|_| Disconnected)?;
        let located = LocatedCapture {
            location,
            capture,
            size: size as u64,
            memory,
        };
        self.queue
            .blocking_send(Ok(located))
            .map_err(|_| Disconnected)
    }
}

fn read_path(path: &Path, sender: &CaptureSender) -> SendResult {
    if path.as_os_str() == "-" {
        return FileReader::new("stdin", io::stdin().lock()).send_all(false, sender);
    }
    match list_files(path) {
        Ok(files) if files.is_empty() => sender.send_error(ReadError::EmptyFolder(path.to_owned())),
        Ok(files) => files.iter().try_for_each(|file| read_file(file, sender)),
        Err(error) => sender.send_error(ReadError::UnreadableFile(path.to_owned(), error)),
    }
}

fn read_file(file: &Path, sender: &CaptureSender) -> SendResult {
    match File::open(file) {
        Ok(open) => FileReader::new(&file.display().to_string(), BufReader::new(open))
            .send_all(has_extension(file, "jsonl"), sender),
        Err(error) => sender.send_error(ReadError::UnreadableFile(file.to_owned(), error)),
    }
}

/// Lists the files behind an argument: the file itself, or the files in a folder, sorted by name.
fn list_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(path)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        // A link to a folder is not followed: its target is elsewhere, or may contain this folder.
        if fs::symlink_metadata(&entry)?.is_dir() {
            files.extend(list_files(&entry)?);
        } else if has_extension(&entry, "jsonl") || has_extension(&entry, "json") {
            files.push(entry);
        }
    }
    Ok(files)
}

fn has_extension(file: &Path, extension: &str) -> bool {
    file.extension().is_some_and(|found| found == extension)
}

/// Reads one file. Lines include their ends.
struct FileReader<R> {
    file: Arc<str>,
    reader: R,
    /// Lines that were read to detect the format, in advance.
    buffered: VecDeque<Line>,
    /// The number of the line that was returned last.
    line_number: usize,
}

/// A line with its end, unless it is too long.
type Line = Result<Vec<u8>, TooLong>;
struct TooLong;

/// The format of a file.
enum Format {
    /// One capture or callback per line.
    Lines,
    /// The whole file is one bare callback.
    SingleCallback,
}

impl<R: BufRead> FileReader<R> {
    fn new(file: &str, reader: R) -> Self {
        Self {
            file: file.into(),
            reader,
            buffered: VecDeque::new(),
            line_number: 0,
        }
    }

    fn send_all(mut self, is_jsonl: bool, sender: &CaptureSender) -> SendResult {
        match self.try_send_all(is_jsonl, sender) {
            Ok(sent) => sent,
            Err(error) => {
                let file = PathBuf::from(&*self.file);
                sender.send_error(ReadError::UnreadableFile(file, error))
            }
        }
    }

    fn try_send_all(&mut self, is_jsonl: bool, sender: &CaptureSender) -> io::Result<SendResult> {
        let format = if is_jsonl {
            Format::Lines
        } else {
            self.detect_format()?
        };
        match format {
            Format::Lines => self.send_lines(sender),
            Format::SingleCallback => self.send_single_callback(sender),
        }
    }

    fn send_single_callback(&mut self, sender: &CaptureSender) -> io::Result<SendResult> {
        let mut text: Vec<u8> = self.buffered.drain(..).flatten().flatten().collect();
        let rest = LINE_LIMIT_BYTES.saturating_sub(text.len()) as u64;
        self.reader.by_ref().take(rest + 1).read_to_end(&mut text)?;
        Ok(if text.len() > LINE_LIMIT_BYTES {
            sender.send_error(ReadError::TooLong(self.location(1)))
        } else if text.trim_ascii().is_empty() {
            sender.send_error(ReadError::EmptyFile(Arc::clone(&self.file)))
        } else {
            self.send_capture(sender, 1, text.len(), &text)
        })
    }

    fn send_lines(&mut self, sender: &CaptureSender) -> io::Result<SendResult> {
        let mut is_empty = true;
        while let Some(line) = self.next_line()? {
            let sent = match line {
                Ok(line) if line.trim_ascii().is_empty() => continue,
                Ok(line) => {
                    let text = line.strip_suffix(b"\n").unwrap_or(&line);
                    let text = text.strip_suffix(b"\r").unwrap_or(text);
                    self.send_capture(sender, self.line_number, line.len(), text)
                }
                Err(TooLong) => {
                    sender.send_error(ReadError::TooLong(self.location(self.line_number)))
                }
            };
            if sent.is_err() {
                return Ok(sent);
            }
            is_empty = false;
        }
        Ok(if is_empty {
            sender.send_error(ReadError::EmptyFile(Arc::clone(&self.file)))
        } else {
            Ok(())
        })
    }

    /// Sends the capture in `text`, which starts at `line` and takes `size` bytes in the file.
    fn send_capture(
        &self,
        sender: &CaptureSender,
        line: usize,
        size: usize,
        text: &[u8],
    ) -> SendResult {
        match Capture::from_line(text) {
            Ok(capture) => sender.send_capture(self.location(line), size, capture),
            Err(error) => {
                let location = self.location(line + error.line() - 1);
                sender.send_error(ReadError::NotACapture(location, error))
            }
        }
    }

    /// Detects the format by the first lines that are not blank: a first line that is a capture, or
    /// two lines of which the first is a whole callback, start a file of lines.
    fn detect_format(&mut self) -> io::Result<Format> {
        let mut first_is_callback = false;
        while let Some(line) = self.read_line()? {
            let (is_blank, is_capture, is_callback) = match &line {
                Ok(text) => (
                    text.trim_ascii().is_empty(),
                    has_capture_fields(text),
                    Capture::from_bare(text).is_ok(),
                ),
                // No single callback has a line of this length.
                Err(TooLong) => (false, true, false),
            };
            self.buffered.push_back(line);
            if is_blank {
                if self.buffered.len() > BLANK_LINES_LIMIT {
                    return Ok(Format::Lines);
                }
            } else if first_is_callback || (is_capture && !is_callback) {
                return Ok(Format::Lines);
            } else if !is_callback {
                return Ok(Format::SingleCallback);
            } else {
                first_is_callback = true;
            }
        }
        Ok(Format::SingleCallback)
    }

    fn next_line(&mut self) -> io::Result<Option<Line>> {
        self.line_number += 1;
        match self.buffered.pop_front() {
            Some(line) => Ok(Some(line)),
            None => self.read_line(),
        }
    }

    fn read_line(&mut self) -> io::Result<Option<Line>> {
        let mut line = Vec::new();
        let limit = LINE_LIMIT_BYTES as u64 + 1;
        self.reader
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut line)?;
        if line.len() > LINE_LIMIT_BYTES {
            self.reader.skip_until(b'\n')?;
            return Ok(Some(Err(TooLong)));
        }
        Ok((!line.is_empty()).then_some(Ok(line)))
    }

    fn location(&self, line: usize) -> Location {
        Location {
            file: Arc::clone(&self.file),
            line,
        }
    }
}
