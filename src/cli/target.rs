//! The file that an export is written to.

use super::output::{Output, Place, There, private};
use crate::quote;
use rustix::fd::OwnedFd;
use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, flock};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::PathBuf;

/// The file being written: under another name until it is whole and on the disk.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) file: File,
    /// `None` where the output is no regular file (a pipe, a device) and is written as it is.
    whole: Option<Whole>,
}

#[derive(Debug)]
struct Whole {
    place: Place,
    partial: OsString,
}

impl Target {
    pub(super) fn create(output: Output) -> io::Result<Self> {
        let place = match output {
            Output::Open(file) => return Ok(Self { file, whole: None }),
            Output::Place(place) if place.there == There::Special => {
                return Ok(Self { file: place.open_special()?, whole: None });
            }
            Output::Place(place) => place,
        };
        let mut partial = place.name.clone();
        partial.push(".partial");
        let whole = Whole { place, partial };
        // Another export may finish between the open and the lock, and take the name away.
        let file = loop {
            let file = whole.open()?;
            flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|why| match why {
                Errno::WOULDBLOCK => io::Error::other(format!(
                    "another export is writing {}",
                    quote::path(&whole.partial_path())
                )),
                why => why.into(),
            })?;
            if whole.is_named(&file)? {
                break file;
            }
        };
        // It holds a person's secrets: for nobody else from its first byte on.
        fs::fchmod(&file, private())?;
        fs::ftruncate(&file, 0)?;
        Ok(Self { file: file.into(), whole: Some(whole) })
    }

    /// Whether it lies in `directory`, one of the machine's own, and so would be in its own archive.
    pub(super) fn is_below(&self, directory: &OwnedFd) -> bool {
        self.whole.as_ref().is_some_and(|whole| whole.place.is_below(directory) == Ok(true))
    }

    pub(super) fn finish(self) -> io::Result<()> {
        let Some(whole) = &self.whole else { return Ok(()) };
        let named = self.file.sync_all().and_then(|()| whole.rename(&self.file));
        if let Err(why) = named {
            self.discard();
            return Err(why);
        }
        // The rename is on the disk when its directory is; one that may not be read cannot be told so.
        match whole.place.open_directory() {
            Ok(directory) => Ok(fs::fsync(directory)?),
            Err(Errno::ACCESS) => Ok(()),
            Err(why) => Err(why.into()),
        }
    }

    /// Leaves what was written under its other name; `None` where it has none.
    pub(super) fn keep(self) -> io::Result<Option<PathBuf>> {
        let Some(whole) = &self.whole else { return Ok(None) };
        self.file.sync_all()?;
        Ok(Some(whole.partial_path()))
    }

    pub(super) fn discard(&self) {
        if let Some(whole) = &self.whole
            && whole.is_named(&self.file).unwrap_or(false)
        {
            let _ = fs::unlinkat(&whole.place.directory, &whole.partial, AtFlags::empty());
        }
    }
}

impl Whole {
    fn partial_path(&self) -> PathBuf {
        self.place.path.with_file_name(&self.partial)
    }

    /// Makes the file, or takes up one of ours that is there.
    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let directory = &self.place.directory;
        loop {
            let made = flags | OFlags::CREATE | OFlags::EXCL;
            match fs::openat(directory, &self.partial, made, private()) {
                Err(Errno::EXIST) => {}
                other => return Ok(other?),
            }
            // Before it is opened: what somebody else has put there is not.
            match self.place.stat(&self.partial) {
                Ok(st) => self.is_ours(&st)?,
                Err(why) if why.kind() == io::ErrorKind::NotFound => continue,
                Err(why) => return Err(why),
            }
            match fs::openat(directory, &self.partial, flags | OFlags::NONBLOCK, Mode::empty()) {
                Err(Errno::NOENT) => {}
                other => {
                    let file = other?;
                    self.is_ours(&fs::fstat(&file)?)?;
                    return Ok(file);
                }
            }
        }
    }

    fn is_ours(&self, st: &Stat) -> io::Result<()> {
        let me = rustix::process::geteuid().as_raw();
        let regular = FileType::from_raw_mode(st.st_mode) == FileType::RegularFile;
        match regular && st.st_uid == me && st.st_nlink == 1 {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "{} is there and not ours; remove it",
                quote::path(&self.partial_path())
            ))),
        }
    }

    /// Whether `file` still has its name.
    fn is_named(&self, file: impl rustix::fd::AsFd) -> io::Result<bool> {
        let ours = fs::fstat(file)?;
        match self.place.stat(&self.partial) {
            Ok(named) => Ok((named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)),
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(why) => Err(why),
        }
    }

    fn rename(&self, file: &File) -> io::Result<()> {
        // Whoever owns the directory may exchange it, and would have something else called an export.
        if !self.is_named(file)? {
            let partial = self.partial_path();
            return Err(io::Error::other(format!(
                "{} was replaced while it was written",
                quote::path(&partial)
            )));
        }
        let (directory, name) = (&self.place.directory, &self.place.name);
        Ok(fs::renameat(directory, &self.partial, directory, name)?)
    }
}
