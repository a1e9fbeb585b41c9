//! What `on_task` sees.

use std::fmt;
use std::ops::Deref;

use super::outcome::TaskId;

/// What `on_task` is given beside the payload: the state `W` of the task worker it runs on, and
/// [what there is to know of the task](TaskInfo), to which it dereferences.
///
/// `O` is where the pool belongs: in a server, its [`ServerHandle`](crate::ServerHandle).
pub struct TaskContext<W, O> {
    pub(super) worker: W,
    pub(super) info: TaskInfo<O>,
}

/// The task that is running.
pub struct TaskInfo<O> {
    pub(super) id: TaskId,
    pub(super) worker_index: usize,
    pub(super) origin: O,
}

impl<W, O> TaskContext<W, O> {
    /// The state of this task worker, as its `task_worker` closure made it: a database connection, say.
    pub fn worker(&mut self) -> &mut W {
        &mut self.worker
    }

    /// The state of the task worker, and the rest, so that both can be used together.
    pub fn parts(&mut self) -> (&mut W, &TaskInfo<O>) {
        (&mut self.worker, &self.info)
    }
}

impl<W, O> Deref for TaskContext<W, O> {
    type Target = TaskInfo<O>;

    fn deref(&self) -> &TaskInfo<O> {
        &self.info
    }
}

impl<O> TaskInfo<O> {
    /// The id that `task` returned to the submitter.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Which task worker this is: 0 to `task_worker_num` - 1.
    pub fn worker_index(&self) -> usize {
        self.worker_index
    }

    pub(crate) fn origin(&self) -> &O {
        &self.origin
    }
}

impl<W, O> fmt::Debug for TaskContext<W, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskContext").field("info", &self.info).finish_non_exhaustive()
    }
}

impl<O> fmt::Debug for TaskInfo<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TaskInfo { id, worker_index, origin: _ } = self;
        f.debug_struct("TaskInfo").field("id", id).field("worker_index", worker_index).finish_non_exhaustive()
    }
}
