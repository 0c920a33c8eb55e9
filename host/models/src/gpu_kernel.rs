//! Kernels of our own on a GPU: one source for Metal and CUDA, compiled by MLX when first used.
//!
//! The two languages differ, for what such a kernel needs, in a handful of words, which
//! [`GpuKernel::new`] puts in:
//!
//! | in the source | is |
//! | --- | --- |
//! | `GROUP_X`, `GROUP_Y` | the thread group's place in the grid |
//! | `THREAD` | the thread's place in its group |
//! | `SHARED` | declares memory that a group shares |
//! | `SYNC` | waits for the whole group |
//! | `LANE_XOR(x, n)` | `x` of the lane whose number differs from ours in the bit `n` |
//! | `EXP(x)` | the fast exponential |

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

/// A kernel. It reads its inputs, which are row-contiguous, and writes all of its outputs.
pub(crate) struct GpuKernel(platform::PlatformKernel);

/// A constant that a kernel is compiled with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TemplateArgument {
    Type(Dtype),
    Number(i32),
}

/// An array that a kernel writes.
#[derive(Debug, Clone)]
pub(crate) struct KernelOutput {
    pub(crate) shape: Vec<i32>,
    pub(crate) dtype: Dtype,
}

/// The arguments and the grid of one call of a kernel.
pub(crate) struct KernelCall<'a> {
    pub(crate) inputs: &'a [&'a Array],
    pub(crate) outputs: &'a [KernelOutput],
    pub(crate) arguments: &'a [(&'a str, TemplateArgument)],
    pub(crate) groups: (i32, i32),
    /// Threads in a group.
    pub(crate) threads: i32,
}

impl GpuKernel {
    /// Nothing is compiled yet: an error in `source` shows when a call is evaluated.
    pub(crate) fn new(
        name: &str,
        inputs: &[&str],
        outputs: &[&str],
        source: &str,
    ) -> Result<Self, Exception> {
        let source = platform::WORDS
            .iter()
            .fold(source.to_owned(), |source, (word, is)| source.replace(word, is));
        platform::PlatformKernel::new(name, inputs, outputs, &source).map(Self)
    }

    /// # Safety
    ///
    /// For these inputs and this grid, the source must stay within its inputs and outputs, write
    /// every element of the outputs and have no conflicting accesses.
    pub(crate) unsafe fn call(&self, call: &KernelCall<'_>) -> Result<Vec<Array>, Exception> {
        // SAFETY: the caller's promise.
        unsafe { self.0.call(call) }
    }
}

#[cfg(target_os = "macos")]
mod platform {
    use mlx_rs::Array;
    use mlx_rs::error::Exception;
    use mlx_rs::fast::{
        MetalKernel, MetalKernelApplyOptions, MetalKernelOptions, MetalKernelOutput, TemplateArg,
    };

    use super::{KernelCall, TemplateArgument};

    pub(super) const WORDS: &[(&str, &str)] = &[
        ("GROUP_X", "int(threadgroup_position_in_grid.x)"),
        ("GROUP_Y", "int(threadgroup_position_in_grid.y)"),
        ("THREAD", "int(thread_position_in_threadgroup.x)"),
        ("SHARED", "threadgroup"),
        ("SYNC", "threadgroup_barrier(mem_flags::mem_threadgroup)"),
        ("LANE_XOR", "simd_shuffle_xor"),
        ("EXP", "metal::fast::exp"),
    ];

    pub(super) struct PlatformKernel(MetalKernel);

    impl PlatformKernel {
        pub(super) fn new(
            name: &str,
            inputs: &[&str],
            outputs: &[&str],
            source: &str,
        ) -> Result<Self, Exception> {
            let options =
                MetalKernelOptions { ensure_row_contiguous: true, ..MetalKernelOptions::default() };
            MetalKernel::new(name, inputs, outputs, source, options).map(Self)
        }

        /// # Safety
        ///
        /// As for [`super::GpuKernel::call`].
        pub(super) unsafe fn call(&self, call: &KernelCall<'_>) -> Result<Vec<Array>, Exception> {
            let argument = |argument| match argument {
                TemplateArgument::Type(dtype) => TemplateArg::Dtype(dtype),
                TemplateArgument::Number(number) => TemplateArg::Int(number),
            };
            let outputs: Vec<_> = call
                .outputs
                .iter()
                .map(|output| MetalKernelOutput {
                    shape: output.shape.clone(),
                    dtype: output.dtype,
                })
                .collect();
            let options = MetalKernelApplyOptions {
                template_args: call
                    .arguments
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), argument(*value)))
                    .collect(),
                ..MetalKernelApplyOptions::default()
            };
            let (x, y) = call.groups;
            // SAFETY: the caller's promise.
            unsafe {
                let (grid, group) = ((x * call.threads, y, 1), (call.threads, 1, 1));
                self.0.apply(call.inputs, &outputs, grid, group, options)
            }
        }
    }
}

#[cfg(not(target_os = "macos"))]
mod platform {
    use std::ffi::{CString, c_int};

    use mlx_rs::error::Exception;
    use mlx_rs::{Array, Stream};

    use super::{KernelCall, TemplateArgument};

    pub(super) const WORDS: &[(&str, &str)] = &[
        ("GROUP_X", "int(blockIdx.x)"),
        ("GROUP_Y", "int(blockIdx.y)"),
        ("THREAD", "int(threadIdx.x)"),
        ("SHARED", "__shared__"),
        ("SYNC", "__syncthreads()"),
        ("LANE_XOR(", "__shfl_xor_sync(0xffffffff, "),
        ("EXP", "__expf"),
    ];

    /// mlx-rs wraps only Metal's.
    pub(super) struct PlatformKernel(mlx_sys::mlx_fast_cuda_kernel);

    struct Names(mlx_sys::mlx_vector_string);
    struct Arrays(mlx_sys::mlx_vector_array);
    struct KernelConfig(mlx_sys::mlx_fast_cuda_kernel_config);

    impl Names {
        fn new(names: &[&str]) -> Result<Self, Exception> {
            // SAFETY: makes an empty vector, which this value frees.
            let made = Self(unsafe { mlx_sys::mlx_vector_string_new() });
            for name in names {
                let name = text(name)?;
                // SAFETY: both live, and the name is copied.
                check(unsafe { mlx_sys::mlx_vector_string_append_value(made.0, name.as_ptr()) })?;
            }
            Ok(made)
        }
    }

    impl Drop for Names {
        fn drop(&mut self) {
            // SAFETY: made by us, and not used after this.
            unsafe { mlx_sys::mlx_vector_string_free(self.0) };
        }
    }

    impl Drop for Arrays {
        fn drop(&mut self) {
            // SAFETY: made by us, and not used after this.
            unsafe { mlx_sys::mlx_vector_array_free(self.0) };
        }
    }

    impl Drop for KernelConfig {
        fn drop(&mut self) {
            // SAFETY: made by us, and not used after this.
            unsafe { mlx_sys::mlx_fast_cuda_kernel_config_free(self.0) };
        }
    }

    impl Drop for PlatformKernel {
        fn drop(&mut self) {
            // SAFETY: made by us, and not used after this.
            unsafe { mlx_sys::mlx_fast_cuda_kernel_free(self.0) };
        }
    }

    impl PlatformKernel {
        pub(super) fn new(
            name: &str,
            inputs: &[&str],
            outputs: &[&str],
            source: &str,
        ) -> Result<Self, Exception> {
            let (name, source, header) = (text(name)?, text(source)?, text("")?);
            let (inputs, outputs) = (Names::new(inputs)?, Names::new(outputs)?);
            // SAFETY: all of these live, and are copied.
            let raw = unsafe {
                mlx_sys::mlx_fast_cuda_kernel_new(
                    name.as_ptr(),
                    inputs.0,
                    outputs.0,
                    source.as_ptr(),
                    header.as_ptr(),
                    true,
                    0,
                )
            };
            if raw.ctx.is_null() {
                return Err(Exception::custom("MLX has no CUDA kernels here"));
            }
            Ok(Self(raw))
        }

        /// # Safety
        ///
        /// As for [`super::GpuKernel::call`].
        pub(super) unsafe fn call(&self, call: &KernelCall<'_>) -> Result<Vec<Array>, Exception> {
            // SAFETY: makes a value, which this one frees.
            let config = KernelConfig(unsafe { mlx_sys::mlx_fast_cuda_kernel_config_new() });
            for output in call.outputs {
                let (shape, dtype) = (&output.shape, output.dtype.into());
                // SAFETY: the shape lives, and is copied.
                check(unsafe {
                    mlx_sys::mlx_fast_cuda_kernel_config_add_output_arg(
                        config.0,
                        shape.as_ptr(),
                        shape.len(),
                        dtype,
                    )
                })?;
            }
            for (name, argument) in call.arguments {
                let name = text(name)?;
                // SAFETY: the name lives, and is copied.
                check(unsafe {
                    match *argument {
                        TemplateArgument::Type(dtype) => {
                            mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_dtype(
                                config.0,
                                name.as_ptr(),
                                dtype.into(),
                            )
                        }
                        TemplateArgument::Number(number) => {
                            mlx_sys::mlx_fast_cuda_kernel_config_add_template_arg_int(
                                config.0,
                                name.as_ptr(),
                                number,
                            )
                        }
                    }
                })?;
            }
            let (x, y) = call.groups;
            // SAFETY: numbers only.
            check(unsafe {
                mlx_sys::mlx_fast_cuda_kernel_config_set_grid(config.0, x * call.threads, y, 1)
            })?;
            // SAFETY: numbers only.
            check(unsafe {
                mlx_sys::mlx_fast_cuda_kernel_config_set_thread_group(config.0, call.threads, 1, 1)
            })?;
            let inputs: Vec<_> = call.inputs.iter().map(|array| array.as_ptr()).collect();
            // SAFETY: the arrays live; the vector holds references of its own to them.
            let inputs = Arrays(unsafe {
                mlx_sys::mlx_vector_array_new_data(inputs.as_ptr(), inputs.len())
            });
            // SAFETY: makes an empty vector, which this value frees.
            let mut results = Arrays(unsafe { mlx_sys::mlx_vector_array_new() });
            let stream = Stream::thread_local_or_default();
            // SAFETY: all of these live; what the kernel does is the caller's promise.
            check(unsafe {
                mlx_sys::mlx_fast_cuda_kernel_apply(
                    &mut results.0,
                    self.0,
                    inputs.0,
                    config.0,
                    stream.as_ref().as_ptr(),
                )
            })?;
            (0..call.outputs.len())
                .map(|index| {
                    // SAFETY: makes an empty array, which is filled next.
                    let mut array = unsafe { mlx_sys::mlx_array_new() };
                    // SAFETY: both live; the array is a reference of our own.
                    check(unsafe { mlx_sys::mlx_vector_array_get(&mut array, results.0, index) })?;
                    // SAFETY: nobody else owns this reference.
                    Ok(unsafe { Array::from_ptr(array) })
                })
                .collect()
        }
    }

    fn text(text: &str) -> Result<CString, Exception> {
        CString::new(text).map_err(|error| Exception::custom(error.to_string()))
    }

    fn check(status: c_int) -> Result<(), Exception> {
        if status == 0 { Ok(()) } else { Err(Exception::custom("MLX refused a CUDA kernel")) }
    }
}
