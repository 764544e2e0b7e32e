//! What a file calls tensors, and what models call them.
//!
//! Models ask for diffusers' names. Files in the layouts of other code bases have others, and a few tensors joined or
//! transposed. The two are related by a table, read in one direction to load and in the other to convert. Which table a
//! component has is the matter of its family ([`crate::families`]).

use std::collections::HashMap;

/// Which part of a stored tensor a model's tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorPart {
    /// All of it.
    Whole,
    /// One of three equal parts along the first dimension.
    Third(usize),
    /// The matrix the other way round.
    Transposed,
}

/// The names of one component's tensors in a file and in the model.
#[derive(Debug, Clone, Default)]
pub struct TensorNames {
    /// What all of the component's names in the file start with.
    pub prefix: String,
    /// From the beginning of a model's name, or all of it, to that in the file; and back.
    to_file: HashMap<String, String>,
    to_model: HashMap<String, String>,
    /// From the file's name of three joined tensors to the model's three; and back, with the number.
    joined: HashMap<String, [String; 3]>,
    parts: HashMap<String, (String, usize)>,
    /// From the model's name to that of a matrix that the file has the other way round.
    transposed: Vec<(String, String)>,
}

impl TensorNames {
    /// A component whose names differ by their prefix alone.
    pub fn plain(prefix: &str) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }

    /// What the models call the parts of a tensor of the file, whose name is given without the prefix.
    pub fn in_model(&self, name: &str) -> Vec<(String, TensorPart)> {
        if let Some(thirds) = self.joined.get(name) {
            return thirds.iter().enumerate().map(|(i, third)| (third.clone(), TensorPart::Third(i))).collect();
        }
        if let Some((model, _)) = self.transposed.iter().find(|(_, file)| file == name) {
            return vec![(model.clone(), TensorPart::Transposed)];
        }
        vec![(replaced(name, &self.to_model), TensorPart::Whole)]
    }

    /// What the file calls a model's tensor, prefix and all, and which part of it the tensor is.
    pub fn in_file(&self, name: &str) -> (String, TensorPart) {
        let (file, part) = if let Some((file, third)) = self.parts.get(name) {
            (file.clone(), TensorPart::Third(*third))
        } else if let Some((_, file)) = self.transposed.iter().find(|(model, _)| model == name) {
            (file.clone(), TensorPart::Transposed)
        } else {
            (replaced(name, &self.to_file), TensorPart::Whole)
        };
        (format!("{}{file}", self.prefix), part)
    }

    /// The beginning `model` of a model's names, up to a dot or whole, is `file` in the file.
    pub fn pair(&mut self, model: impl Into<String>, file: impl Into<String>) {
        let (model, file) = (model.into(), file.into());
        self.to_file.insert(model.clone(), file.clone());
        self.to_model.insert(file, model);
    }

    /// Three tensors of the model are joined to one in the file, along their first dimension.
    pub fn join(&mut self, models: [String; 3], file: String) {
        for (third, name) in models.iter().enumerate() {
            self.parts.insert(name.clone(), (file.clone(), third));
        }
        self.joined.insert(file, models);
    }

    /// A matrix of the model is the other way round in the file.
    pub fn transpose(&mut self, model: &str, file: &str) {
        self.transposed.push((model.into(), file.into()));
    }
}

/// The name with its longest known beginning, which ends at a dot or with the name, replaced.
fn replaced(name: &str, table: &HashMap<String, String>) -> String {
    if let Some(whole) = table.get(name) {
        return whole.clone();
    }
    let dots = name.rmatch_indices('.').map(|(at, _)| at + 1);
    let found = dots.filter_map(|end| Some((table.get(&name[..end])?, &name[end..]))).next();
    found.map_or_else(|| name.into(), |(beginning, rest)| format!("{beginning}{rest}"))
}
