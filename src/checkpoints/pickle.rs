//! Python's pickles, as far as PyTorch's files of weights use them, read without running anything.
//!
//! A pickle is a program for a stack machine that can call any function it names. This reader knows a handful of names,
//! gives each a fixed meaning of its own, and takes every other name and every other instruction for an error. What a
//! pickle builds lives in one list of nodes that refer to each other by number: nothing it says can make the reader
//! recurse. Since a short instruction can copy much, what is built is counted, and may be [a few times](MOST_BUILT) the
//! pickle's length.

use safetensors::tensor::Dtype;
use std::collections::HashMap;

/// Bytes of the largest pickle; that of Stable Diffusion XL has a few hundred thousand.
pub(super) const LARGEST: usize = 64 << 20;

/// What a pickle builds may take so many times its own length, and [`SPARED`] more; those of weights take five to nine times.
const MOST_BUILT: usize = 16;

/// Arguments of a call that are looked at.
const MOST_ARGUMENTS: usize = 7;

/// Bytes that are not counted.
const SPARED: usize = 1 << 20;

/// PyTorch knows up to 64; those of images have four.
const MOST_DIMENSIONS: usize = 8;

/// A node's number.
pub(super) type Id = usize;

/// What a pickle can build.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// A number with a fraction, none, a call whose result is of no concern.
    Opaque,
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Function(Function),
    /// A container of parameters, with its state once that is known.
    Object(Option<Id>),
    /// Element type, the text that names the entry that holds the values, and their number.
    Storage(Dtype, Id, usize),
    Tensor(Box<PickledTensor>),
}

/// A tensor: a view of a storage. Offset and strides count elements.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PickledTensor {
    pub storage: Id,
    /// The element type, if it is not the storage's.
    pub dtype: Option<Dtype>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// The names that a pickle may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Function {
    OrderedDict,
    RebuildTensor,
    /// The same with an element type, of tensors whose storage has none.
    RebuildTyped,
    RebuildParameter,
    StorageClass(Dtype),
    /// An element type; nothing if tensors of it cannot be read.
    ElementType(Option<Dtype>),
    /// PyTorch's shape, a tuple.
    Size,
    /// PyTorch's dictionary of parameters, which the first textual inversions were saved in.
    ParameterDict,
    /// Known from what trainers leave beside the weights; its results are not looked at.
    Inert,
}

impl Function {
    fn named(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTyped,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Self::RebuildParameter,
            ("torch", "Size") => Self::Size,
            ("torch.nn.modules.container", "ParameterDict") => Self::ParameterDict,
            ("torch", "DoubleStorage") => Self::StorageClass(Dtype::F64),
            ("torch", "FloatStorage") => Self::StorageClass(Dtype::F32),
            ("torch", "HalfStorage") => Self::StorageClass(Dtype::F16),
            ("torch", "BFloat16Storage") => Self::StorageClass(Dtype::BF16),
            ("torch", "LongStorage") => Self::StorageClass(Dtype::I64),
            ("torch", "IntStorage") => Self::StorageClass(Dtype::I32),
            ("torch", "ShortStorage") => Self::StorageClass(Dtype::I16),
            ("torch", "CharStorage") => Self::StorageClass(Dtype::I8),
            ("torch", "ByteStorage") => Self::StorageClass(Dtype::U8),
            ("torch", "BoolStorage") => Self::StorageClass(Dtype::BOOL),
            // Bytes of any type, which the tensors say.
            ("torch.storage" | "torch", "UntypedStorage") => Self::StorageClass(Dtype::U8),
            ("torch", "float64" | "double") => Self::ElementType(Some(Dtype::F64)),
            ("torch", "float32" | "float") => Self::ElementType(Some(Dtype::F32)),
            ("torch", "float16" | "half") => Self::ElementType(Some(Dtype::F16)),
            ("torch", "bfloat16") => Self::ElementType(Some(Dtype::BF16)),
            ("torch", "float8_e4m3fn") => Self::ElementType(Some(Dtype::F8_E4M3)),
            ("torch", "float8_e5m2") => Self::ElementType(Some(Dtype::F8_E5M2)),
            ("torch", "int64" | "long") => Self::ElementType(Some(Dtype::I64)),
            ("torch", "int32" | "int") => Self::ElementType(Some(Dtype::I32)),
            ("torch", "int16" | "short") => Self::ElementType(Some(Dtype::I16)),
            ("torch", "int8") => Self::ElementType(Some(Dtype::I8)),
            ("torch", "uint8") => Self::ElementType(Some(Dtype::U8)),
            ("torch", "uint16") => Self::ElementType(Some(Dtype::U16)),
            ("torch", "uint32") => Self::ElementType(Some(Dtype::U32)),
            ("torch", "uint64") => Self::ElementType(Some(Dtype::U64)),
            ("torch", "bool") => Self::ElementType(Some(Dtype::BOOL)),
            (
                "torch",
                "complex32" | "complex64" | "complex128" | "chalf" | "cfloat" | "cdouble" | "float8_e4m3fnuz"
                | "float8_e5m2fnuz" | "float8_e8m0fnu" | "qint8" | "quint8" | "qint32" | "bits8" | "bits16",
            ) => Self::ElementType(None),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar")
            | ("numpy", "dtype")
            | ("_codecs", "encode")
            | ("torch", "device")
            | ("__builtin__" | "builtins", "set" | "frozenset" | "complex" | "bytearray" | "slice" | "range")
            | ("collections", "Counter")
            | ("datetime", "datetime" | "date" | "time" | "timedelta")
            | ("pathlib", "Path" | "PurePath" | "PosixPath" | "WindowsPath" | "PurePosixPath" | "PureWindowsPath")
            | ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint") => Self::Inert,
            _ => return None,
        })
    }
}

/// A pickle, read.
#[derive(Debug)]
pub(super) struct Pickle {
    pub nodes: Vec<Node>,
    pub root: Id,
}

impl Pickle {
    /// Reads a whole pickle, of [`LARGEST`] bytes at most.
    ///
    /// # Errors
    /// If it is damaged, or holds an instruction or a name that is not one of the few.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        Ok(Self::read_first(bytes)?.0)
    }

    /// Reads the pickle that bytes begin with, and gives its length.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_first(bytes: &[u8]) -> Result<(Self, usize), String> {
        let most = bytes.len() * MOST_BUILT + SPARED;
        let mut machine =
            Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), memo: HashMap::new(), contents: 0, most };
        let root = machine.run()?;
        Ok((Self { nodes: machine.nodes, root }, machine.at))
    }

    /// The keys and values of a dictionary; of a dictionary of parameters, which is an object, those in its state.
    pub fn pairs(&self, id: Id) -> Option<&[(Id, Id)]> {
        let dict = |id: Id| match &self.nodes[id] {
            Node::Dict(pairs) => Some(pairs.as_slice()),
            _ => None,
        };
        match &self.nodes[id] {
            Node::Object(Some(state)) => {
                let (_, parameters) = dict(*state)?.iter().find(|(key, _)| self.text(*key) == Some("_parameters"))?;
                dict(*parameters)
            }
            _ => dict(id),
        }
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        match &self.nodes[id] {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value under a text in a dictionary; the last one, as in Python.
    pub fn get(&self, dict: Id, key: &str) -> Option<Id> {
        let pairs = self.pairs(dict)?;
        pairs.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|&(_, value)| value)
    }
}

/// What lies on the stack.
#[derive(Debug, Clone, Copy)]
enum Item {
    Mark,
    Value(Id),
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Item>,
    memo: HashMap<usize, Id>,
    /// Bytes that nodes hold beside themselves.
    contents: usize,
    /// Bytes that all of it may take.
    most: usize,
}

type Parsed<T = ()> = Result<T, String>;

impl Machine<'_> {
    fn run(&mut self) -> Parsed<Id> {
        loop {
            if self.built() > self.most {
                return Err(format!(
                    "its pickle has {} bytes and builds more than {} of them, which none of weights does; get the file again",
                    self.bytes.len(),
                    self.most
                ));
            }
            let opcode = self.take(1)?[0];
            match opcode {
                b'.' => return self.pop(),
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'(' => self.stack.push(Item::Mark),
                b'0' => drop(self.stack.pop()),
                b'1' => drop(self.items()?),
                b'N' | 0x88 | 0x89 => self.push(Node::Opaque),
                b'K' | b'M' | b'J' | 0x8a | 0x8b => self.integer(opcode)?,
                b'G' => {
                    self.take(8)?;
                    self.push(Node::Opaque);
                }
                b'X' | 0x8c | 0x8d | b'U' | b'T' | b'C' | b'B' => self.text(opcode)?,
                b')' => self.push(Node::Tuple(Vec::new())),
                b']' => self.push(Node::List(Vec::new())),
                b'}' => self.push(Node::Dict(Vec::new())),
                0x85..=0x87 => {
                    let mut items = (0x85..=opcode).map(|_| self.pop()).collect::<Parsed<Vec<_>>>()?;
                    items.reverse();
                    self.push(Node::Tuple(items));
                }
                b't' => {
                    let items = self.items()?;
                    self.push(Node::Tuple(items));
                }
                b'l' => {
                    let items = self.items()?;
                    self.push(Node::List(items));
                }
                b'd' => {
                    let items = self.items()?;
                    self.push(Node::Dict(pairs(&items)?));
                }
                b'a' | b'e' => self.append(opcode == b'a')?,
                b's' | b'u' => self.set(opcode == b's')?,
                b'q' | b'r' | 0x94 => self.remember(opcode)?,
                b'h' | b'j' => self.recall(opcode)?,
                b'c' | 0x93 => self.function(opcode)?,
                b'R' | 0x81 => self.call()?,
                b'Q' => self.storage()?,
                b'b' => self.build()?,
                other => {
                    return Err(format!(
                        "its pickle has the instruction 0x{other:02x} at byte {}, which no file of weights needs; \
                         nothing of it was run; get the model as safetensors",
                        self.at - 1
                    ));
                }
            }
        }
    }

    /// Bytes of memory; nodes are never let go of.
    fn built(&self) -> usize {
        let each = self.nodes.len() * size_of::<Node>() + self.stack.len() * size_of::<Item>();
        each + self.memo.len() * size_of::<(usize, Id)>() + self.contents
    }

    fn take(&mut self, count: usize) -> Parsed<&[u8]> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or("its pickle ends in the middle; the file is damaged, get it again")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of up to eight bytes without a sign.
    fn number(&mut self, size: usize) -> Parsed<usize> {
        let bytes = self.take(size)?;
        let value = bytes.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
        usize::try_from(value).map_err(|_| "its pickle has a length beyond all memory".into())
    }

    fn push(&mut self, node: Node) {
        self.contents += match &node {
            Node::Text(text) => text.len(),
            Node::Tuple(items) | Node::List(items) => items.len() * size_of::<Id>(),
            Node::Dict(pairs) => pairs.len() * size_of::<(Id, Id)>(),
            Node::Tensor(tensor) => {
                size_of::<PickledTensor>() + (tensor.shape.len() + tensor.strides.len()) * size_of::<usize>()
            }
            _ => 0,
        };
        self.nodes.push(node);
        self.stack.push(Item::Value(self.nodes.len() - 1));
    }

    fn pop(&mut self) -> Parsed<Id> {
        match self.stack.pop() {
            Some(Item::Value(id)) => Ok(id),
            _ => Err("its pickle takes more off its stack than is there; the file is damaged".into()),
        }
    }

    /// What lies above the last mark.
    fn items(&mut self) -> Parsed<Vec<Id>> {
        let mark = self.stack.iter().rposition(|item| matches!(item, Item::Mark));
        let mark = mark.ok_or("its pickle has no mark where one is needed; the file is damaged")?;
        let values = self.stack.drain(mark..).filter_map(|item| match item {
            Item::Value(id) => Some(id),
            Item::Mark => None,
        });
        Ok(values.collect())
    }

    /// The container below what was just taken off.
    fn top(&mut self) -> Parsed<&mut Node> {
        match self.stack.last() {
            Some(&Item::Value(id)) => Ok(&mut self.nodes[id]),
            _ => Err("its pickle fills a container that is not there; the file is damaged".into()),
        }
    }

    fn integer(&mut self, opcode: u8) -> Parsed {
        let value = match opcode {
            b'K' => self.number(1)? as i64,
            b'M' => self.number(2)? as i64,
            b'J' => self.number(4)? as u32 as i32 as i64,
            _ => {
                let size = self.number(if opcode == 0x8a { 1 } else { 4 })?;
                let bytes = self.take(size)?;
                if bytes.len() > 8 {
                    // Larger than any size; of no concern unless it is used as one.
                    self.push(Node::Opaque);
                    return Ok(());
                }
                let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
                let start: i64 = if negative { -1 } else { 0 };
                bytes.iter().rev().fold(start, |value, &byte| value << 8 | i64::from(byte))
            }
        };
        self.push(Node::Int(value));
        Ok(())
    }

    fn text(&mut self, opcode: u8) -> Parsed {
        let size = match opcode {
            0x8c | b'U' | b'C' => 1,
            0x8d => 8,
            _ => 4,
        };
        let length = self.number(size)?;
        let bytes = self.take(length)?;
        // Strings of bytes are of no concern, unless they are text that Python 2 wrote.
        let node = std::str::from_utf8(bytes).map_or(Node::Opaque, |text| Node::Text(text.into()));
        self.push(node);
        Ok(())
    }

    fn append(&mut self, one: bool) -> Parsed {
        let items = if one { vec![self.pop()?] } else { self.items()? };
        self.contents += items.len() * size_of::<Id>();
        match self.top()? {
            Node::List(list) => list.extend(items),
            Node::Opaque => {}
            _ => return Err("its pickle appends to something that is no list; the file is damaged".into()),
        }
        Ok(())
    }

    fn set(&mut self, one: bool) -> Parsed {
        let items = if one {
            let value = self.pop()?;
            vec![self.pop()?, value]
        } else {
            self.items()?
        };
        let new = pairs(&items)?;
        self.contents += new.len() * size_of::<(Id, Id)>();
        match self.top()? {
            Node::Dict(dict) => dict.extend(new),
            Node::Opaque => {}
            _ => return Err("its pickle sets items of something that is no dictionary; the file is damaged".into()),
        }
        Ok(())
    }

    fn remember(&mut self, opcode: u8) -> Parsed {
        let slot = match opcode {
            b'q' => self.number(1)?,
            b'r' => self.number(4)?,
            _ => self.memo.len(),
        };
        let Some(&Item::Value(id)) = self.stack.last() else {
            return Err("its pickle remembers what is not there; the file is damaged".into());
        };
        self.memo.insert(slot, id);
        Ok(())
    }

    fn recall(&mut self, opcode: u8) -> Parsed {
        let slot = self.number(if opcode == b'h' { 1 } else { 4 })?;
        let id = *self.memo.get(&slot).ok_or("its pickle recalls what it did not remember; the file is damaged")?;
        self.stack.push(Item::Value(id));
        Ok(())
    }

    fn function(&mut self, opcode: u8) -> Parsed {
        let (module, name) = if opcode == b'c' {
            (self.line()?, self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            let text = |id: Id| match &self.nodes[id] {
                Node::Text(text) => Ok(text.clone()),
                _ => Err("its pickle names a function by something that is no text".to_owned()),
            };
            (text(module)?, text(name)?)
        };
        let function = Function::named(&module, &name).ok_or_else(|| {
            let shown: String = format!("{module}.{name}").chars().take(100).collect();
            format!(
                "its pickle names `{shown}`, which no file of weights needs and which could do harm; nothing of it was \
                 run; get the model as safetensors"
            )
        })?;
        self.push(Node::Function(function));
        Ok(())
    }

    fn line(&mut self) -> Parsed<String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or("its pickle ends in the middle of a name")?;
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length + 1;
        Ok(line)
    }

    fn call(&mut self) -> Parsed {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (Node::Function(function), Node::Tuple(arguments)) = (&self.nodes[function], &self.nodes[arguments]) else {
            return Err("its pickle calls something that is no function; the file is damaged".into());
        };
        // Those that count come first.
        let (function, arguments) = (*function, arguments[..arguments.len().min(MOST_ARGUMENTS)].to_vec());
        let node = match function {
            Function::OrderedDict => Node::Dict(self.listed_pairs(&arguments)?),
            Function::RebuildTensor => self.tensor(&arguments, None)?,
            Function::RebuildTyped => {
                let dtype = match arguments.get(6).map(|&id| &self.nodes[id]) {
                    Some(Node::Function(Function::ElementType(dtype))) => *dtype,
                    _ => return Err("its pickle has a tensor without an element type; the file is damaged".into()),
                };
                // Of a type that is not read: the tensor is not there.
                if dtype.is_some() { self.tensor(&arguments, dtype)? } else { Node::Opaque }
            }
            Function::RebuildParameter => match arguments.first().map(|&id| &self.nodes[id]) {
                Some(Node::Tensor(tensor)) => Node::Tensor(tensor.clone()),
                _ => return Err("its pickle has a parameter without a tensor; the file is damaged".into()),
            },
            Function::Size => {
                let list =
                    arguments.first().copied().ok_or("its pickle has a shape of nothing; the file is damaged")?;
                self.stack.push(Item::Value(list));
                return Ok(());
            }
            Function::ParameterDict => Node::Object(None),
            Function::Inert => Node::Opaque,
            Function::StorageClass(_) | Function::ElementType(_) => {
                return Err("its pickle calls a class of storage; the file is damaged".into());
            }
        };
        self.push(node);
        Ok(())
    }

    /// Gives an object its state: of dictionaries a note on versions, of most others nothing that is looked at.
    fn build(&mut self) -> Parsed {
        let state = self.pop()?;
        if let Node::Object(slot) = self.top()? {
            *slot = Some(state);
        }
        Ok(())
    }

    /// The pairs of `OrderedDict([[key, value], ...])`, or none.
    fn listed_pairs(&self, arguments: &[Id]) -> Parsed<Vec<(Id, Id)>> {
        let Some(&list) = arguments.first() else { return Ok(Vec::new()) };
        let wrong = || "its pickle makes a dictionary of something else than pairs; the file is damaged".to_owned();
        let Node::List(list) = &self.nodes[list] else { return Err(wrong()) };
        let pair = |&id: &Id| match &self.nodes[id] {
            Node::List(pair) | Node::Tuple(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => Err(wrong()),
        };
        list.iter().map(pair).collect()
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, ...)`.
    fn tensor(&self, arguments: &[Id], dtype: Option<Dtype>) -> Parsed<Node> {
        let damaged = || "its pickle has a tensor without storage, place, shape and strides".to_owned();
        let &[storage, offset, shape, strides, ..] = arguments else { return Err(damaged()) };
        let size = |id: Id| match self.nodes[id] {
            Node::Int(value) => usize::try_from(value).map_err(|_| damaged()),
            _ => Err(damaged()),
        };
        let sizes = |id: Id| match &self.nodes[id] {
            Node::Tuple(items) if items.len() > MOST_DIMENSIONS => {
                Err(format!("its pickle has a tensor of {} dimensions, and {MOST_DIMENSIONS} are read", items.len()))
            }
            Node::Tuple(items) => items.iter().map(|&id| size(id)).collect::<Parsed<Vec<_>>>(),
            _ => Err(damaged()),
        };
        if !matches!(self.nodes[storage], Node::Storage(..)) {
            return Err(damaged());
        }
        let (offset, shape, strides) = (size(offset)?, sizes(shape)?, sizes(strides)?);
        Ok(Node::Tensor(Box::new(PickledTensor { storage, dtype, offset, shape, strides })))
    }

    /// `("storage", class, key, location, count)`: PyTorch's reference to the values. Before version 1.6 there is a sixth part, none
    /// unless the storage is a part of another.
    fn storage(&mut self) -> Parsed {
        let id = self.pop()?;
        let damaged = || "its pickle refers to values in another way than PyTorch does".to_owned();
        let Node::Tuple(parts) = &self.nodes[id] else { return Err(damaged()) };
        let &[kind, class, key, _, count, ref rest @ ..] = parts.as_slice() else { return Err(damaged()) };
        if rest.len() > 1 || rest.iter().any(|&view| self.nodes[view] != Node::Opaque) {
            return Err(damaged());
        }
        let (Node::Text(kind), Node::Function(Function::StorageClass(dtype)), Node::Text(_), Node::Int(count)) =
            (&self.nodes[kind], &self.nodes[class], &self.nodes[key], &self.nodes[count])
        else {
            return Err(damaged());
        };
        let count = usize::try_from(*count).map_err(|_| damaged())?;
        if kind != "storage" {
            return Err(damaged());
        }
        let node = Node::Storage(*dtype, key, count);
        self.push(node);
        Ok(())
    }
}

fn pairs(items: &[Id]) -> Parsed<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("its pickle has a key without a value; the file is damaged".into());
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}
