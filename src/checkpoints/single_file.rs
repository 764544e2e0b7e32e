//! A whole model in one file, in the layout of the code base that trained it, or a part of a model alone.

use super::{Checkpoint, ModelFiles, TensorFile, TensorNames};
use crate::config::ConfigFields;
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where a file with several components has each, and under which names.
pub trait FileLayout: fmt::Debug + Send + Sync {
    /// The names of a component's tensors in a file whose configurations are `configs`.
    ///
    /// # Errors
    /// If the component's configuration cannot be used.
    fn component(&self, file: &TensorFile, component: &str, configs: &ModelFiles) -> Result<ComponentNames>;

    /// The same in a file that holds this component alone; by default as in one with several.
    ///
    /// # Errors
    /// As [`Self::component`], or if the file holds something else.
    fn alone(&self, file: &TensorFile, component: &str, configs: &ModelFiles) -> Result<ComponentNames> {
        self.component(file, component, configs)
    }

    /// Whether the file is where a component's weights are; those that it does not hold are where its configurations are. By
    /// default it is taken for a whole model.
    fn holds(&self, _file: &TensorFile, _component: &str) -> bool {
        true
    }

    /// A component's configuration, with what the file says otherwise of itself by its tensors; by default nothing.
    fn config(&self, _file: &TensorFile, _component: &str, fields: ConfigFields) -> ConfigFields {
        fields
    }

    /// The names of a component's tensors in a file that is written.
    ///
    /// # Errors
    /// If files of this layout have no such component, or its configuration cannot be used.
    fn names_to_write(&self, component: &'static str, configs: &ModelFiles) -> Result<TensorNames>;

    /// Tensors by which a file that is written says what it has no configuration to say with: their names, and the number in
    /// each that is not empty.
    ///
    /// # Errors
    /// If a configuration cannot be used.
    fn marks(&self, _configs: &ModelFiles) -> Result<Vec<(&'static str, Option<f64>)>> {
        Ok(Vec::new())
    }

    /// What messages call the model that a file holds; nothing if it is no whole model.
    fn describe(&self, file: &TensorFile) -> Option<String>;
}

/// How a component's tensors are found in a file.
#[derive(Debug, Clone, Default)]
pub struct ComponentNames {
    /// Their names.
    pub names: TensorNames,
    /// Beginnings of names that models of this form have no use for.
    pub unused: Vec<String>,
}

impl From<TensorNames> for ComponentNames {
    /// A component all of whose tensors are used.
    fn from(names: TensorNames) -> Self {
        Self { names, unused: Vec::new() }
    }
}

/// A file that holds several components. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct SingleFile {
    file: Arc<TensorFile>,
    name: String,
}

impl SingleFile {
    /// Opens a file.
    ///
    /// # Errors
    /// If there is no such file, it is damaged, or of a form that is not read.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name else {
            return Err(Error::invalid("the name of the model's file", path.display(), "rename it to plain text"));
        };
        let folder = ModelFiles::Folder(path.parent().map_or_else(|| ".".into(), Path::to_path_buf));
        Ok(Self { file: Arc::new(TensorFile::open(&folder, name)?), name: name.into() })
    }

    /// The file's tensors.
    pub fn file(&self) -> &TensorFile {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Its name in the folder that it lies in.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A checkpoint of what the file holds under other names; `model` is what messages call the whole of it.
    pub fn checkpoint(
        &self,
        component: &str,
        names: ComponentNames,
        model: Option<String>,
        dtype: DType,
        device: &Device,
    ) -> Checkpoint {
        Checkpoint::of_part((&self.file, &self.name), component, names, model, dtype, device)
    }

    /// The weights of a component, which are where `layout` has found them.
    ///
    /// # Errors
    /// If the file has no such component.
    pub(super) fn component(
        &self,
        component: &str,
        found: ComponentNames,
        layout: &dyn FileLayout,
        dtype: DType,
        device: &Device,
    ) -> Result<Checkpoint> {
        let prefix = &found.names.prefix;
        if !self.file.tensors().iter().any(|tensor| tensor.name.starts_with(prefix)) {
            let fix = format!(
                "it has no tensors under {prefix}; it is a part of a model, or of another family than the configurations say. \
                 With a UNet alone goes the folder of a whole model as `config`"
            );
            return Err(Error::unusable(
                ErrorKind::Model,
                format!("the {component} in {}", self.path().display()),
                "missing",
                fix,
            ));
        }
        Ok(self.checkpoint(component, found, layout.describe(&self.file), dtype, device))
    }
}
