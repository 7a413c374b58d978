//! Background tasks that must not end unnoticed.

use std::time::Duration;

use tokio::task::JoinSet;

/// Time between a panic and the next start.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Runs a background task. After a panic it is started again; it ends when its future returns. Dropping this
/// stops it.
pub async fn run<F>(name: &str, start: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    run_with_pause(name, RESTART_PAUSE, start).await;
}

/// Runs work that is not repeated here. `None` after a panic, or if the runtime ends. Dropping this stops it.
pub fn run_once<T: Send + 'static>(
    name: &str,
    work: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = Option<T>> {
    let mut task = JoinSet::new();
    // Not in the future that is returned: `work` may be deep.
    task.spawn(work);
    async move {
        match task.join_next().await? {
            Ok(result) => Some(result),
            Err(error) => {
                if error.is_panic() {
                    tracing::error!("panic in background task {name}; please report this as a bug");
                }
                None
            }
        }
    }
}

async fn run_with_pause<F>(name: &str, pause: Duration, start: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let mut task = JoinSet::new();
        task.spawn(start());
        match task.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                tracing::error!(
                    "panic in background task {name}, which starts again; please report this as a bug"
                );
                tokio::time::sleep(pause).await;
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[tokio::test]
    async fn task_starts_again_after_a_panic() {
        let starts = Arc::new(AtomicUsize::new(0));
        run_with_pause("test", Duration::ZERO, || {
            let starts = starts.clone();
            async move { assert!(starts.fetch_add(1, Relaxed) == 2, "on purpose") }
        })
        .await;
        assert_eq!(starts.load(Relaxed), 3);
    }

    #[tokio::test]
    async fn panic_of_single_work_is_no_result() {
        assert_eq!(run_once("test", async { 7 }).await, Some(7));
        assert_eq!(run_once("test", async { assert_eq!(1, 2, "on purpose") }).await, None);
    }

    #[tokio::test]
    async fn drop_stops_the_task() {
        let held = Arc::new(());
        let task = held.clone();
        let supervisor = tokio::spawn(run("test", move || {
            let task = task.clone();
            async move {
                std::future::pending::<()>().await;
                drop(task);
            }
        }));
        while Arc::strong_count(&held) < 3 {
            tokio::task::yield_now().await;
        }
        supervisor.abort();
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
