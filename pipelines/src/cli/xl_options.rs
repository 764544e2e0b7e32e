//! The options of Stable Diffusion XL.

use clap::Args;
use tweedie_pipelines::{SizeRequest, XlRequest};

/// Two whole numbers: height and width, or y and x.
type Pair = (usize, usize);

/// A heading for each option, since one for all would go on over the options that follow.
const HEADING: &str = "Stable Diffusion XL";

#[derive(Debug, Args)]
pub struct XlOptions {
    /// What the second text encoder reads [default: the prompt]
    #[arg(long = "prompt-2", value_name = "TEXT", allow_hyphen_values = true, help_heading = HEADING)]
    prompt_2: Option<String>,

    /// What the second text encoder reads to stay away from [default: the negative prompt]
    #[arg(long = "negative-prompt-2", value_name = "TEXT", allow_hyphen_values = true, help_heading = HEADING)]
    negative_prompt_2: Option<String>,

    /// The size that the model takes the picture to have had before it was made smaller [default: the picture's]
    #[arg(long, value_name = "HxW", value_parser = size, help_heading = HEADING)]
    original_size: Option<Pair>,

    /// The size that the model takes the picture to have [default: the picture's]
    #[arg(long, value_name = "HxW", value_parser = size, help_heading = HEADING)]
    target_size: Option<Pair>,

    /// Where the model takes the picture to have been cut out [default: 0,0]
    #[arg(long, value_name = "Y,X", value_parser = corner, help_heading = HEADING)]
    crop_top_left: Option<Pair>,

    /// The original size of what to stay away from [default: that of the prompt]
    #[arg(long, value_name = "HxW", value_parser = size, help_heading = HEADING)]
    negative_original_size: Option<Pair>,

    /// The target size of what to stay away from [default: that of the prompt]
    #[arg(long, value_name = "HxW", value_parser = size, help_heading = HEADING)]
    negative_target_size: Option<Pair>,

    /// The corner of what to stay away from [default: 0,0]
    #[arg(long, value_name = "Y,X", value_parser = corner, help_heading = HEADING)]
    negative_crop_top_left: Option<Pair>,
}

impl XlOptions {
    /// The part of the request that they make.
    pub fn request(&self) -> XlRequest {
        XlRequest {
            prompt_2: self.prompt_2.clone(),
            negative_prompt_2: self.negative_prompt_2.clone(),
            sizes: SizeRequest {
                original: self.original_size,
                crop_top_left: self.crop_top_left,
                target: self.target_size,
            },
            negative_sizes: SizeRequest {
                original: self.negative_original_size,
                crop_top_left: self.negative_crop_top_left,
                target: self.negative_target_size,
            },
        }
    }
}

fn pair(text: &str, separator: char) -> Option<Pair> {
    let (first, second) = text.split_once(separator)?;
    Some((first.trim().parse().ok()?, second.trim().parse().ok()?))
}

fn size(text: &str) -> Result<Pair, String> {
    pair(text, 'x').ok_or_else(|| "give height and width with an x between, such as 1024x768".into())
}

fn corner(text: &str) -> Result<Pair, String> {
    pair(text, ',').ok_or_else(|| "give y and x with a comma between, such as 0,128".into())
}
