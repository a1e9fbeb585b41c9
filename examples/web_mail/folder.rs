//! A folder that mails are written to.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use lettre::Message;

pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Folder> {
        fs::create_dir_all(path).with_context(|| format!("--folder {}", path.display()))?;
        Ok(Folder(path.to_owned()))
    }

    /// A file has its name once all of the mail is on the disk; another attempt writes the same file.
    pub(crate) fn write(&self, message: &Message) -> io::Result<()> {
        let name = name_of(message);
        let unfinished = self.0.join(format!("{name}.unfinished"));
        let written = write_all(&unfinished, &message.formatted())
            .and_then(|()| fs::rename(&unfinished, self.0.join(format!("{name}.eml"))))
            .and_then(|()| File::open(&self.0)?.sync_all());
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written
    }
}

fn write_all(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// What the id of the message begins with, which no other has.
fn name_of(message: &Message) -> String {
    let id = message.headers().get_raw("Message-ID").unwrap_or_default();
    id.chars().skip(1).take_while(|char| char.is_ascii_alphanumeric() || *char == '-').collect()
}
