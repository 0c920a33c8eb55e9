//! The host's own code as the compiler's first step sees it: modules, what they define, and what
//! they name of each other. Tests are left out: they may know everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::Visit;

/// A module's path in its crate; empty for the root.
pub(crate) type ModulePath = Vec<String>;

/// What one module holds.
#[derive(Default)]
pub(crate) struct Module {
    /// Names of the types that it defines.
    pub(crate) types: Vec<String>,
    /// Names of everything that it defines.
    defines: BTreeSet<String>,
    /// What a `use` gives another name to, and where it leads.
    imports: BTreeMap<String, Vec<String>>,
    /// Paths of which a `use` takes everything.
    globs: Vec<Vec<String>>,
    /// Every path that its code names.
    paths: BTreeSet<Vec<String>>,
}

/// The modules of one crate.
pub(crate) struct Crate {
    /// The name of its folder under `host/`.
    pub(crate) name: String,
    /// Every module that is compiled into it without its tests.
    pub(crate) modules: BTreeMap<ModulePath, Module>,
}

/// All crates under `host/` that have sources.
pub(crate) fn host() -> Vec<Crate> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host");
    let mut folders: Vec<_> =
        fs::read_dir(root).expect("it is there").flatten().map(|entry| entry.path()).collect();
    folders.sort();
    folders.iter().filter_map(|folder| Crate::read(folder)).collect()
}

impl Crate {
    fn read(folder: &Path) -> Option<Self> {
        let entry = ["src/lib.rs", "src/main.rs"].map(|file| folder.join(file));
        let root = entry.into_iter().find(|file| file.exists())?;
        let name = folder.file_name()?.to_str()?.to_owned();
        let mut modules = BTreeMap::new();
        read_file(&root, root.parent()?, vec![], &mut modules);
        Some(Self { name, modules })
    }

    /// Modules that a module names something of, itself left out.
    pub(crate) fn used_by(&self, module: &ModulePath) -> BTreeSet<ModulePath> {
        let named = self.modules[module].paths.iter();
        let mut used: BTreeSet<_> = named.filter_map(|path| self.lookup(module, path, 8)).collect();
        used.remove(module);
        used
    }

    /// The module that defines what `path` names in `module`; `None` when that is another crate's.
    fn lookup(&self, module: &ModulePath, path: &[String], depth: usize) -> Option<ModulePath> {
        let mut at = module.clone();
        let mut rest = path;
        let mut inside = false;
        while let Some((first, behind)) = rest.split_first() {
            match first.as_str() {
                "crate" => at.clear(),
                "super" => {
                    at.pop();
                }
                "self" => {}
                _ => break,
            }
            (inside, rest) = (true, behind);
        }
        let (first, _) = rest.split_first()?;
        if !inside && !self.modules.contains_key(&child(&at, first)) {
            return None;
        }
        for (index, segment) in rest.iter().enumerate() {
            if self.modules.contains_key(&child(&at, segment)) {
                at.push(segment.clone());
                continue;
            }
            if depth == 0 || self.modules[&at].defines.contains(segment) {
                return Some(at);
            }
            let led = self.modules[&at].imports.get(segment);
            if let Some(target) = led {
                let target = [target.as_slice(), &rest[index + 1..]].concat();
                return self.lookup(&at, &target, depth - 1);
            }
            let globs = self.modules[&at].globs.iter();
            let mut found = globs.filter_map(|glob| {
                let target = [glob.as_slice(), &rest[index..]].concat();
                self.lookup(&at, &target, depth - 1)
            });
            return Some(found.find(|found| *found != at).unwrap_or(at.clone()));
        }
        Some(at)
    }
}

fn child(at: &ModulePath, name: &str) -> ModulePath {
    [at.as_slice(), &[name.to_owned()]].concat()
}

/// Reads a module's file. Those of its children lie in `folder`.
fn read_file(
    file: &Path,
    folder: &Path,
    path: ModulePath,
    modules: &mut BTreeMap<ModulePath, Module>,
) {
    let text = fs::read_to_string(file).unwrap_or_else(|why| panic!("{}: {why}", file.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|why| panic!("{}: {why}", file.display()));
    read_items(&parsed.items, folder, path, modules);
}

fn read_items(
    items: &[syn::Item],
    folder: &Path,
    path: ModulePath,
    modules: &mut BTreeMap<ModulePath, Module>,
) {
    let mut module = Module::default();
    for item in items.iter().filter(|item| !is_test(attributes(item))) {
        if let syn::Item::Mod(inner) = item {
            let name = inner.ident.to_string();
            let (below, path) = (folder.join(&name), child(&path, &name));
            match &inner.content {
                Some((_, items)) => read_items(items, &below, path, modules),
                None => read_file(&file_of(folder, inner), &below, path, modules),
            }
            continue;
        }
        module.define(item);
        module.visit_item(item);
    }
    modules.insert(path, module);
}

fn file_of(folder: &Path, module: &syn::ItemMod) -> PathBuf {
    let name = module.ident.to_string();
    let named = module.attrs.iter().find_map(|attribute| {
        let syn::Meta::NameValue(pair) = &attribute.meta else { return None };
        let syn::Expr::Lit(value) = &pair.value else { return None };
        let syn::Lit::Str(value) = &value.lit else { return None };
        pair.path.is_ident("path").then(|| folder.join(value.value()))
    });
    let usual = [folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs")];
    named.into_iter().chain(usual).find(|file| file.exists()).expect("a module has a file")
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Const(item) => &item.attrs,
        _ => &[],
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        list.path.is_ident("cfg")
            && list
                .tokens
                .to_string()
                .split(['(', ',', ' '])
                .any(|word| word.trim_end_matches(')') == "test")
    })
}

impl Module {
    fn define(&mut self, item: &syn::Item) {
        let (name, is_type) = match item {
            syn::Item::Struct(item) => (&item.ident, true),
            syn::Item::Enum(item) => (&item.ident, true),
            syn::Item::Union(item) => (&item.ident, true),
            syn::Item::Trait(item) => (&item.ident, true),
            syn::Item::Type(item) => (&item.ident, true),
            syn::Item::Fn(item) => (&item.sig.ident, false),
            syn::Item::Const(item) => (&item.ident, false),
            syn::Item::Static(item) => (&item.ident, false),
            _ => return,
        };
        if is_type {
            self.types.push(name.to_string());
        }
        self.defines.insert(name.to_string());
    }

    fn import(&mut self, tree: &syn::UseTree, before: &[String]) {
        match tree {
            syn::UseTree::Path(path) => {
                let before = [before, &[path.ident.to_string()]].concat();
                self.import(&path.tree, &before);
            }
            syn::UseTree::Name(name) => self.named(before, &name.ident, &name.ident),
            syn::UseTree::Rename(name) => self.named(before, &name.ident, &name.rename),
            syn::UseTree::Glob(_) => {
                self.globs.push(before.to_vec());
                self.paths.insert(before.to_vec());
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(tree, before);
                }
            }
        }
    }

    fn named(&mut self, before: &[String], name: &syn::Ident, here: &syn::Ident) {
        let mut path = before.to_vec();
        if name != "self" {
            path.push(name.to_string());
        }
        let here = if here == "self" { path.last().cloned() } else { Some(here.to_string()) };
        self.imports.insert(here.unwrap_or_default(), path.clone());
        self.paths.insert(path);
    }
}

impl<'code> Visit<'code> for Module {
    fn visit_item_use(&mut self, item: &'code syn::ItemUse) {
        self.import(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'code syn::Path) {
        if path.segments.len() > 1 {
            self.paths.insert(path.segments.iter().map(|part| part.ident.to_string()).collect());
        }
        syn::visit::visit_path(self, path);
    }
}
