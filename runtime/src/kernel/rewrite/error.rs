//! Why a module cannot be rewritten.

/// A SPIR-V module cannot be rewritten.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// Not SPIR-V, or damaged.
    #[error("it is not a SPIR-V module that can be read: {0}")]
    Malformed(String),
    /// The module has no pointers that could be translated.
    #[error(
        "it has no pointers to memory ({0}): declare them as `buffer_reference` (GLSL) or as pointers (Slang, HLSL)"
    )]
    NoPointers(&'static str),
    /// The module does something with a pointer that rewriting cannot keep correct.
    #[error("cannot translate {instruction}: {reason}")]
    Unsupported {
        /// The instruction, as a disassembler would show it.
        instruction: String,
        /// Why, and what to write instead.
        reason: String,
    },
    /// The module, as a whole, is of a kind that cannot be rewritten.
    #[error("{0}")]
    Module(String),
    /// The rewritten module has an access that is not translated: a mistake of the rewriting.
    #[error("{instruction} was left untranslated; this is a mistake in vksvm, please report it with the module")]
    Untranslated {
        /// The instruction.
        instruction: String,
    },
}
