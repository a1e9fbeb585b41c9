//! Where mails go: over SMTP, or to a folder.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use lettre::Message;

use crate::folder::Folder;
use crate::smtp::Smtp;

/// A mail to be sent. Attempts share the message, and so its id.
#[derive(Clone)]
pub(crate) struct Mail {
    pub(crate) number: u64,
    pub(crate) message: Arc<Message>,
}

#[derive(Clone)]
pub(crate) enum Where {
    Smtp { url: String, hurry: u32 },
    Folder(PathBuf),
}

/// What each task worker has one of.
pub(crate) enum Outgoing {
    Smtp(Box<Smtp>),
    Folder(Folder),
}

/// Why an attempt has not sent a mail, as far as one knows.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Another attempt may go well.
    ForNow(String),
    /// No other attempt goes better.
    ForGood(String),
    /// The server has all of it, and has not said whether it takes it. Another attempt could deliver it twice.
    Unknown(String),
}

impl Outgoing {
    pub(crate) fn open(to: &Where) -> anyhow::Result<Outgoing> {
        Ok(match to {
            Where::Smtp { url, hurry } => Outgoing::Smtp(Box::new(Smtp::to(url, *hurry).context("--smtp")?)),
            Where::Folder(path) => Outgoing::Folder(Folder::open(path)?),
        })
    }

    /// One attempt, over by then if there is such a moment.
    pub(crate) fn send(&mut self, message: &Message, end: Option<Instant>) -> Result<(), Failure> {
        match self {
            Outgoing::Smtp(smtp) => smtp.send(message, end),
            Outgoing::Folder(folder) => Ok(folder.write(message)?),
        }
    }
}

impl Failure {
    /// In as many words as there are.
    pub(crate) fn why(&self) -> &str {
        match self {
            Failure::ForNow(why) | Failure::ForGood(why) | Failure::Unknown(why) => why,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why())
    }
}

impl Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::ForNow(error.to_string())
    }
}

/// Whether another attempt may go well.
pub(crate) fn is_passing(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Failure::ForNow(_)))
}
