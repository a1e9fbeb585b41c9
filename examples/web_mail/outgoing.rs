//! Where mails go: over SMTP, or to a folder.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use backroom::ServerHandle;
use lettre::transport::smtp::{self, PoolConfig};
use lettre::{FileTransport, Message, SmtpTransport, Transport};

use crate::board::{Board, State};

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
                let one = PoolConfig::new().max_size(1);
                let builder = SmtpTransport::from_url(url).with_context(|| format!("--smtp {url}"))?;
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

/// Whether it may go well another time: not where the server has refused the mail for good.
pub(crate) fn is_passing(error: &anyhow::Error) -> bool {
    !error.downcast_ref::<smtp::Error>().is_some_and(smtp::Error::is_permanent)
}

/// One attempt, which the board is told the end of, whatever that is.
pub(crate) struct Attempt<'a> {
    board: &'a Board,
    server: &'a ServerHandle,
    number: u64,
    end: State,
}

impl<'a> Attempt<'a> {
    pub(crate) fn begin(board: &'a Board, server: &'a ServerHandle, number: u64, attempt: u32) -> Attempt<'a> {
        board.set(server, number, State::Sending { attempt });
        Attempt { board, server, number, end: State::Failed { why: "the task panicked".to_owned() } }
    }

    pub(crate) fn ends(mut self, end: State) {
        self.end = end;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.board.set(self.server, self.number, self.end.clone());
    }
}
