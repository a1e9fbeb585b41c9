//! Failures that nobody hears of: a line in the log.

use std::fmt;
use std::sync::Arc;

use super::outcome::{Outcome, TaskId};
use crate::logging::{LogLimit, foreign};
use crate::panic::catch;

/// Who has submitted a task, in words: a connection and its address, say.
pub(crate) type Label = Arc<dyn fmt::Display + Send + Sync>;

/// Who logs that a task has failed whose outcome no finish closure hears.
#[derive(Default)]
pub(super) struct Unheard {
    log: LogLimit,
}

impl Unheard {
    /// Hold no lock: the text of an error is users' code, and so is the logger.
    pub(super) fn note<R>(&self, id: TaskId, of: Option<&Label>, outcome: &Outcome<R>) {
        let _ = catch(|| {
            let how = match outcome {
                Outcome::Failed(error) => format!("failed: {}", foreign(format_args!("{error:#}"))),
                Outcome::TimedOut => "did not end by its deadline".to_owned(),
                // A panic is logged where it happens; the rest is not the task's fault.
                _ => return,
            };
            if let Some(held_back) = self.log.permit() {
                let name = Named { id, of };
                log::warn!("{name} {how}; nobody hears of it ({held_back} more since the last line)");
            }
        });
    }
}

/// A task in a line of the log.
pub(super) struct Named<'a> {
    pub(super) id: TaskId,
    pub(super) of: Option<&'a Label>,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.of {
            Some(of) => write!(f, "task {} of {}", self.id, foreign(of)),
            None => write!(f, "task {}", self.id),
        }
    }
}
