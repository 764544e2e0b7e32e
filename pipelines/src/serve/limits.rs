//! How much a server takes.

/// What bounds requests, so that no client can take all memory or all time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request.
    pub body: usize,
    /// Bytes of it that are no picture.
    pub text: usize,
    /// LoRAs of a request.
    pub loras: usize,
    /// Pixels of a picture that is made, and of one that is given.
    pub pixels: usize,
    /// Steps of a picture, each as often as it is run.
    pub steps: usize,
    /// Pictures of a request.
    pub images: usize,
    /// Pictures at a time.
    pub batch: usize,
    /// Jobs that wait.
    pub waiting: usize,
    /// How often a job is begun that ends with its process.
    pub attempts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 64 << 20,
            text: 64 << 10,
            loras: 16,
            pixels: 2048 * 2048,
            steps: 1000,
            images: 64,
            batch: 8,
            waiting: 100,
            attempts: 3,
        }
    }
}
