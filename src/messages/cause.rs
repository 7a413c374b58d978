//! The table from causes of failures to sentences with remedies.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::language::{Language, pick};
use crate::units::Size;

/// Why something failed, in terms of the user. The JSON form is neutral: a code and its values.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Cause {
    DriveFull {
        #[serde(flatten)]
        room: Option<Room>,
    },
    /// The service has ended the login of an account.
    LoginEnded {
        remedy: Remedy,
    },
    /// The access token was refused, and nothing could refresh it.
    TokenRefused {
        remedy: Option<Remedy>,
    },
    /// The signature by an access key was refused.
    AccessKeyRefused,
    /// The code of a login was refused.
    LoginRefused,
    /// The signature of a service app was refused.
    AppKeyRefused,
    /// The account may not do this.
    NotPermitted,
    DriveLocked,
    NoDrive,
    /// The endpoint answers with this HTTP status, but not as PDS does.
    NotPds {
        status: u16,
    },
    FileGone,
    NameTaken,
    NameRefused,
    FileTooLarge,
    FileBusy,
    /// The drive received other bytes than were sent.
    Damaged,
    Throttled,
    /// An HTTP status of 500 or more.
    ServerFailed {
        status: u16,
    },
    /// Another refusal.
    Refused {
        status: u16,
    },
    ClockWrong {
        seconds: u64,
        is_ahead: bool,
    },
    UnknownHost {
        host: String,
    },
    NoNameServer {
        host: String,
    },
    ConnectionRefused {
        host: String,
    },
    NoRoute {
        host: String,
    },
    NoAnswer {
        host: String,
    },
    ConnectionBroke {
        host: String,
    },
    /// Nothing moved for too long.
    Stalled,
    /// The service cannot be reached, for an unknown reason.
    Unreachable,
    /// A word of another version.
    #[serde(other)]
    Unknown,
}

/// The room on a full drive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Room {
    /// In bytes.
    pub free: u64,
    pub total: u64,
    /// The size of the recycle bin, if it is known.
    pub recycled: Option<u64>,
}

/// How a user gives the program a new credential.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// `pdsfs login` with this account.
    Login(String),
    /// A new credential of this name for the unit.
    UnitCredential(String),
    /// A new token in this file.
    TokenFile(String),
    /// A new token.
    Token,
}

impl Remedy {
    fn text(&self, language: Language) -> String {
        match self {
            Self::Login(account) => {
                pick!(language, "run pdsfs login {account}", "请运行 pdsfs login {account}")
            }
            Self::UnitCredential(name) => pick!(
                language,
                "provide a new credential {name} to the unit and restart it",
                "请为该单元提供新的凭据 {name} 并重新启动它"
            ),
            Self::TokenFile(path) => {
                pick!(language, "write a new token to {path}", "请将新的令牌写入 {path}")
            }
            Self::Token => pick!(
                language,
                "provide a new token (PDSFS_TOKEN or --token-file)",
                "请提供新的令牌（PDSFS_TOKEN 或 --token-file）"
            ),
        }
    }
}

/// English: the form of logs and JSON.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(Language::English))
    }
}

impl Cause {
    /// The sentence, with its remedy after a colon.
    pub fn text(&self, language: Language) -> String {
        self.text_of_login(language)
            .or_else(|| self.text_of_transport(language))
            .unwrap_or_else(|| self.text_of_drive(language))
    }

    fn text_of_login(&self, language: Language) -> Option<String> {
        Some(match self {
            Self::LoginEnded { remedy } => {
                let remedy = remedy.text(language);
                pick!(language, "your login has ended: {remedy}", "登录已失效：{remedy}")
            }
            Self::TokenRefused { remedy: Some(remedy) } => {
                let remedy = remedy.text(language);
                pick!(
                    language,
                    "the drive refuses the access token: {remedy}",
                    "云盘拒绝了访问令牌：{remedy}"
                )
            }
            Self::TokenRefused { remedy: None } => pick!(
                language,
                "the drive refuses the access token: log in again with pdsfs login, or provide a new token",
                "云盘拒绝了访问令牌：请用 pdsfs login 重新登录，或提供新的令牌"
            ),
            Self::AccessKeyRefused => pick!(
                language,
                "the drive refuses the access key: check its id, its secret, and that it may use this drive",
                "云盘拒绝了访问密钥：请检查密钥的 id 和 secret，以及它是否可使用此云盘"
            ),
            Self::LoginRefused => pick!(
                language,
                "the service refuses the login: run pdsfs login again, and check that the client id, the client \
                 secret and the redirect URI match the app in the PDS console",
                "服务拒绝了登录：请重新运行 pdsfs login，并检查 client id、client secret 和回调地址是否与 PDS 控制台中的应用一致"
            ),
            Self::AppKeyRefused => pick!(
                language,
                "the service refuses the key of the app: check that the key belongs to the app, that the app may \
                 act for that user or domain, and that the clock of this machine is correct",
                "服务拒绝了应用的密钥：请检查密钥是否属于该应用、应用是否可代表该用户或域，以及本机时钟是否正确"
            ),
            Self::NotPermitted => pick!(
                language,
                "the drive refuses this: the account has no permission for it",
                "云盘拒绝了此操作：该账号没有相应权限"
            ),
            Self::ClockWrong { seconds, is_ahead: true } => pick!(
                language,
                "the clock of this machine is {seconds} s ahead of the clock of the service: correct it",
                "本机时钟比服务端快 {seconds} 秒：请校正时钟"
            ),
            Self::ClockWrong { seconds, is_ahead: false } => pick!(
                language,
                "the clock of this machine is {seconds} s behind the clock of the service: correct it",
                "本机时钟比服务端慢 {seconds} 秒：请校正时钟"
            ),
            _ => return None,
        })
    }

    fn text_of_transport(&self, language: Language) -> Option<String> {
        Some(match self {
            Self::UnknownHost { host } => pick!(
                language,
                "the name {host} does not exist: check the endpoint",
                "主机名 {host} 不存在：请检查 endpoint"
            ),
            Self::NoNameServer { host } => pick!(
                language,
                "no name server answers for {host}: check the network",
                "没有域名服务器能解析 {host}：请检查网络"
            ),
            Self::ConnectionRefused { host } => pick!(
                language,
                "{host} refuses the connection: check the endpoint, and whether the service runs",
                "{host} 拒绝连接：请检查 endpoint 以及服务是否在运行"
            ),
            Self::NoRoute { host } => pick!(
                language,
                "there is no route to {host}: check the network",
                "没有到 {host} 的路由：请检查网络"
            ),
            Self::NoAnswer { host } => pick!(
                language,
                "{host} does not answer: check the network and the endpoint",
                "{host} 没有应答：请检查网络和 endpoint"
            ),
            Self::ConnectionBroke { host } => pick!(
                language,
                "the connection to {host} broke: check the network",
                "与 {host} 的连接中断：请检查网络"
            ),
            Self::Stalled => pick!(
                language,
                "no data has moved for too long: check the network",
                "长时间没有数据传输：请检查网络"
            ),
            Self::Unreachable => pick!(
                language,
                "the service cannot be reached: check the network and the endpoint",
                "无法连接到服务：请检查网络和 endpoint"
            ),
            _ => return None,
        })
    }

    fn text_of_drive(&self, language: Language) -> String {
        match self {
            Self::DriveFull { room } => full_text(*room, language),
            Self::DriveLocked => pick!(
                language,
                "the drive is locked: ask the administrator of the domain",
                "云盘已被锁定：请联系该域的管理员"
            ),
            Self::NoDrive => pick!(
                language,
                "there is no such drive: pdsfs drives lists those of the account",
                "没有这个云盘：用 pdsfs drives 列出该账号的云盘"
            ),
            Self::NotPds { status } => pick!(
                language,
                "the endpoint does not answer as a PDS service ({status}): check the endpoint",
                "endpoint 的应答不是 PDS 服务（{status}）：请检查 endpoint"
            ),
            Self::FileGone => pick!(
                language,
                "the drive does not have it any more: another client may have removed it",
                "云盘上已没有该项：可能已被其他客户端删除"
            ),
            Self::NameTaken => pick!(
                language,
                "the drive has another file of this name: rename one of them",
                "云盘上已有同名文件：请重命名其中一个"
            ),
            Self::NameRefused => pick!(
                language,
                "the drive does not accept this name: choose another one",
                "云盘不接受此名称：请换一个名称"
            ),
            Self::FileTooLarge => pick!(
                language,
                "the file is too large for the drive: split it",
                "文件超过云盘允许的大小：请拆分文件"
            ),
            Self::FileBusy => pick!(
                language,
                "the drive is still changing the file: try again",
                "云盘仍在更改该文件：请重试"
            ),
            Self::Damaged => pick!(
                language,
                "the drive received other bytes than were sent: save the file again",
                "云盘收到的数据与发送的不一致：请重新保存文件"
            ),
            Self::Throttled => pick!(language, "the drive is busy: try again later", "云盘繁忙：请稍后重试"),
            Self::ServerFailed { status } => {
                pick!(language, "the drive answers {status}", "云盘返回错误 {status}")
            }
            Self::Refused { status } => pick!(
                language,
                "the drive refuses the request ({status}): --log debug shows its answer",
                "云盘拒绝了请求（{status}）：--log debug 可显示其应答"
            ),
            _ => pick!(language, "unknown cause", "未知原因"),
        }
    }
}

fn full_text(room: Option<Room>, language: Language) -> String {
    let Some(Room { free, total, recycled }) = room else {
        return pick!(
            language,
            "the drive is full: delete files, and empty its recycle bin with pdsfs trash empty",
            "云盘已满：请删除文件，并用 pdsfs trash empty 清空回收站"
        );
    };
    let (free, total) = (Size(free), Size(total));
    match recycled.map(Size) {
        Some(recycled) => pick!(
            language,
            "the drive is full: {free} of {total} are free, and {recycled} lie in the recycle bin; empty it with \
             pdsfs trash empty",
            "云盘已满：共 {total}，剩余 {free}，回收站占用 {recycled}；请用 pdsfs trash empty 清空回收站"
        ),
        None => pick!(
            language,
            "the drive is full: {free} of {total} are free; delete files, and empty its recycle bin with pdsfs trash \
             empty",
            "云盘已满：共 {total}，剩余 {free}；请删除文件，并用 pdsfs trash empty 清空回收站"
        ),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One value of each cause, and of each text.
    pub fn examples() -> Vec<Cause> {
        let host = || "bj1.example.com".to_owned();
        let room = |recycled| Room { free: 217 << 20, total: 1 << 30, recycled };
        let login = |remedy| Cause::LoginEnded { remedy };
        vec![
            Cause::DriveFull { room: None },
            Cause::DriveFull { room: Some(room(None)) },
            Cause::DriveFull { room: Some(room(Some(500 << 20))) },
            login(Remedy::Login("default".into())),
            login(Remedy::UnitCredential("pdsfs.work".into())),
            Cause::TokenRefused { remedy: Some(Remedy::TokenFile("/t".into())) },
            Cause::TokenRefused { remedy: Some(Remedy::Token) },
            Cause::TokenRefused { remedy: None },
            Cause::AccessKeyRefused,
            Cause::LoginRefused,
            Cause::AppKeyRefused,
            Cause::NotPermitted,
            Cause::DriveLocked,
            Cause::NoDrive,
            Cause::NotPds { status: 404 },
            Cause::FileGone,
            Cause::NameTaken,
            Cause::NameRefused,
            Cause::FileTooLarge,
            Cause::FileBusy,
            Cause::Damaged,
            Cause::Throttled,
            Cause::ServerFailed { status: 500 },
            Cause::Refused { status: 400 },
            Cause::ClockWrong { seconds: 900, is_ahead: true },
            Cause::ClockWrong { seconds: 900, is_ahead: false },
            Cause::UnknownHost { host: host() },
            Cause::NoNameServer { host: host() },
            Cause::ConnectionRefused { host: host() },
            Cause::NoRoute { host: host() },
            Cause::NoAnswer { host: host() },
            Cause::ConnectionBroke { host: host() },
            Cause::Stalled,
            Cause::Unreachable,
            Cause::Unknown,
        ]
    }

    #[test]
    fn causes_survive_json() {
        let texts: std::collections::HashSet<_> =
            examples().iter().map(|cause| cause.text(Language::English)).collect();
        assert_eq!(texts.len(), examples().len(), "two causes with one text");
        for cause in examples() {
            let json = serde_json::to_string(&cause).unwrap();
            assert_eq!(serde_json::from_str::<Cause>(&json).unwrap(), cause, "{json}");
        }
        assert_eq!(serde_json::to_string(&Cause::Stalled).unwrap(), r#"{"code":"stalled"}"#);
        assert_eq!(serde_json::from_str::<Cause>(r#"{"code":"moon","x":1}"#).unwrap(), Cause::Unknown);
    }

    #[test]
    fn full_drive_names_its_recycle_bin() {
        let text = |cause: &Cause| cause.to_string();
        assert_eq!(
            text(&examples()[2]),
            "the drive is full: 217 MiB of 1.0 GiB are free, and 500 MiB lie in the recycle bin; empty it with pdsfs \
             trash empty"
        );
        assert_eq!(text(&examples()[3]), "your login has ended: run pdsfs login default");
    }
}
