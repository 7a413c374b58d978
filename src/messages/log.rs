//! The log of a process at a terminal.

use super::language::messages;

messages! {
    error() { "error:", "错误：" }
    warning() { "warning:", "警告：" }
}
