//! Where mails go: over SMTP, or to a folder.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use lettre::transport::smtp::{self, PoolConfig};
use lettre::{FileTransport, Message, SmtpTransport, Transport};

/// A task: a mail to be sent. Attempts share the message, and so its id.
#[derive(Clone)]
pub(crate) struct Mail {
    pub(crate) number: u64,
    pub(crate) message: Arc<Message>,
}

/// What each task worker has one of.
pub(crate) enum Outgoing {
    /// One connection, made for the first mail, kept while it is used, and made anew when it is lost.
    Smtp(SmtpTransport),
    Folder(FileTransport),
}

pub(crate) enum Where {
    Smtp(String),
    Folder(PathBuf),
}

const SMTP_TIMEOUT: Duration = Duration::from_secs(20);

impl Outgoing {
    pub(crate) fn open(to: &Where) -> anyhow::Result<Outgoing> {
        match to {
            Where::Smtp(url) => {
                // There may be a password in it, so no error shows it.
                let one = PoolConfig::new().max_size(1);
                let builder = SmtpTransport::from_url(url).context("--smtp")?;
                Ok(Outgoing::Smtp(builder.pool_config(one).timeout(Some(SMTP_TIMEOUT)).build()))
            }
            Where::Folder(path) => {
                fs::create_dir_all(path).with_context(|| format!("--folder {}", path.display()))?;
                Ok(Outgoing::Folder(FileTransport::new(path)))
            }
        }
    }

    pub(crate) fn send(&self, message: &Message) -> anyhow::Result<()> {
        match self {
            Outgoing::Smtp(transport) => drop(transport.send(message)?),
            Outgoing::Folder(transport) => drop(transport.send(message)?),
        }
        Ok(())
    }
}

/// Whether it may go well another time: not where the server has refused the mail for good, nor where it can do less than
/// the mail asks for.
pub(crate) fn is_passing(error: &anyhow::Error) -> bool {
    !error.downcast_ref::<smtp::Error>().is_some_and(|error| error.is_permanent() || error.is_client())
}
